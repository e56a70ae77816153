"""The engine: one forward and one modified backward pass through any PyTorch model.

:mod:`.engine` drives a pass, :mod:`.operations` is what it hands to rules, and :mod:`.graph` reads
the autograd graph.  The folders, each of which knows only those below it:

==================== ============================================================================
:mod:`.backward`     running the backward pass: in half precision, for many targets, in little
                     memory
:mod:`.interception` every torch call of the forward pass: which operation it is, handed to a rule
:mod:`.judging`      what no rule covers or can reach, and which module made a NaN
:mod:`.recognition`  what a tensor is, by what computed it: attention, a norm, a gate, a state
:mod:`.state`        what one pass knows while it runs: rules in force, leaves, the ledger
:mod:`.autograd`     functions whose backward passes *are* the rules, and what makes them cheap
:mod:`.hygiene`      what leaves the model, its arguments and the thread as they were
:mod:`.model`        the model itself: its modules, their names, what they take and return
==================== ============================================================================

Nothing here knows Captum, Hugging Face or timm.
"""
