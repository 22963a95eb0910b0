"Import this before fastai: a torchvision built for CUDA can then be imported beside a torch built for the CPU."
import torch

def _declare(*ops):
    "torchvision registers shape functions for operators that only its compiled part declares"
    lib = torch.library.Library('torchvision', 'FRAGMENT')
    for op in ops: lib.define(op)
    return lib

if not torch.cuda.is_available():
    lib = _declare('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor', 'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
