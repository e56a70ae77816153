"""What a tensor is for, told by the operation that made it and by what its operands are."""
