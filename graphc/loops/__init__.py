"""Kernels as loops: the loop IR, how kernels are lowered to it, its text, verifier and interpreter."""
