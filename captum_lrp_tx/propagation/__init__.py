"""The engine: one forward and one modified backward pass through any PyTorch model.

``engine`` drives a pass; ``scope`` says which rule is in force (forward hooks on modules);
``interception`` sees every torch call of the forward pass and hands operations to rules;
``functions`` holds the autograd functions whose backward passes *are* the rules, with
``pattern_product``, ``rows`` and ``compact`` for what makes them cheap.  ``graph``, ``recurrence``,
``linear_attention`` and ``delta_rule`` recognise what a tensor is by what computed it; ``coverage``
and ``obstacles`` name what no rule covers.  ``backward``, ``packing`` and ``recomputation`` run the
backward pass: in half precision, for many targets, in little memory.  ``hooks`` and ``isolation``
leave everything as it was.  Nothing here knows Captum, Hugging Face or timm.
"""
