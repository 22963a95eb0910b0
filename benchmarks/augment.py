"Our augmentation of a batch beside fastai's, the same transforms on the same pictures: python benchmarks/augment.py [SECONDS]"
import statistics,sys,time

import peers # lets fastai import
import torch
import report
from scratchai.types import TensorImage
from scratchai.augment import aug_transforms

gpu = torch.cuda.is_available()
device = torch.device('cuda' if gpu else 'cpu')
budget = float((sys.argv[1:] or [8])[0]) # seconds for each row

def sync():
    if gpu: torch.cuda.synchronize()

def secs(fs, x):
    "Seconds for one batch through the transforms `fs`"
    sync()
    start = time.perf_counter()
    for f in fs: x = f(x, split_idx=0)
    sync()
    return time.perf_counter()-start

def measure(sides, x):
    "Median seconds of each side, in turn"
    found = {k: [] for k in sides}
    for k,(cls,fs) in sides.items(): secs(fs, cls(x)) # the first call sets things up
    end = time.perf_counter()+budget
    while time.perf_counter()<end or len(found['ours'])<3:
        for k,(cls,fs) in sides.items(): found[k].append(secs(fs, cls(x.clone())))
    return {k: statistics.median(v) for k,v in found.items()}

def main():
    try: from fastai.vision import augment as theirs,core
    except ImportError: return print('augment.py: skipped, it needs fastai (benchmarks/requirements.txt)')
    rows = [['transforms','batch','ours, images/s','fastai, images/s','ratio']]
    for name,kw,shape in (('aug_transforms()', {}, (64,3,128,128)), ('aug_transforms()', {}, (64,3,224,224)),
                          ('aug_transforms(size=128, min_scale=0.75)', dict(size=128, min_scale=0.75), (64,3,192,192))):
        x = torch.rand(shape, device=device)
        sides = dict(ours=(TensorImage, aug_transforms(**kw)), fastai=(core.TensorImage, theirs.aug_transforms(**kw)))
        t = measure(sides, x)
        rates = [shape[0]/t[k] for k in ('ours','fastai')]
        rows.append([f'`{name}`', '×'.join(map(str, shape)), *[f'{o:,.0f}' for o in rates], f'**{rates[0]/rates[1]:.1f} ×**'])
    where = torch.cuda.get_device_name() if gpu else f'{torch.get_num_threads()} threads'
    report.write(f"Augmentation of a batch on a {'GPU' if gpu else 'CPU'}", f'{report.table(rows)}\n\nMedians, in turn, on {where}. '
        'Both draw for each picture anew; with `min_scale`, ours cuts out the box in the same lookup, another box for each picture.')

if __name__=='__main__': main()
