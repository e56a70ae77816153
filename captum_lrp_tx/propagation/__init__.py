"""The engine: one forward and one modified backward pass through any PyTorch model.

``engine`` drives a pass; ``scope`` says which rule is in force (forward hooks on modules);
``interception`` sees every torch call of the forward pass and hands operations to rules;
``functions`` holds the autograd functions whose backward passes *are* the rules.  Nothing here
knows Captum, Hugging Face or timm.
"""
