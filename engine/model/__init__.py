"""Models of transformers, loaded unmodified; transformers is imported here and nowhere lower."""

from engine.model.kernels_name import check_no_other_kernels

check_no_other_kernels()
