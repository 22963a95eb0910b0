"Images a second of one pass: our loader beside PyTorch's and fastai's. Usage: loaders.py FOLDER [SIZE…]; the folder in Imagenette's layout"
import sys,time
from statistics import median
import peers,report,torch
import numpy as np
from PIL import Image
from fastai.vision.all import CategoryBlock,DataBlock,GrandparentSplitter as FastaiSplitter,ImageBlock,Resize
from fastai.vision.all import get_image_files as fastai_files,parent_label as fastai_label
from torch.utils.data import DataLoader as TorchLoader
from pathlib import Path
from scratchai.data import *

class Short:
    "A data set of a few lines, as a book would have it"
    def __init__(self, fns, size): self.fns,self.size,self.v2i = fns,size,fns.map(parent_label).unique(sort=True).val2idx()
    def __len__(self): return len(self.fns)
    def __getitem__(self, i):
        im = Image.open(self.fns[i]).resize((self.size,self.size)).convert('RGB')
        return torch.tensor(np.array(im)).float()/255,torch.tensor(self.v2i[parent_label(self.fns[i])])

def rate(dl):
    t = time.perf_counter()
    n = sum(len(b[0]) for b in dl)
    return n/(time.perf_counter()-t)

def loaders(path, size, bs=64, nw=2):
    "Everybody's training pictures, in order, as `float32` on the CPU"
    ds = Short(get_image_files(path/'train'), size)
    block = DataBlock((ImageBlock,CategoryBlock), get_items=fastai_files, get_y=fastai_label, splitter=FastaiSplitter(valid_name='val'),
        item_tfms=Resize(size, method='squish'))
    fastai = block.dataloaders(path, bs=bs, num_workers=nw, device='cpu').train.new(drop_last=False, shuffle=False)
    ours = DataLoader(Dataset(ds.fns, size=size), bs=bs, n_workers=nw, after_batch=ToFloat())
    return {'scratchai':ours, 'torch, persistent workers':TorchLoader(ds, bs, num_workers=nw, persistent_workers=True), 'fastai':fastai}

def main(path, *sizes):
    rows = [['size', 'loader', 'images/s, median of 9 passes', 'scratchai is faster by']]
    for size in map(int, sizes or ['64']):
        dls = loaders(path, size)
        for dl in dls.values(): rate(dl) # the first pass starts the workers
        rates = {k: median(o) for k,o in zip(dls, zip(*[[rate(dl) for dl in dls.values()] for _ in range(9)]))}
        rows += [[size, k, f'{v:.0f}', f"{rates['scratchai']/v:.2f} ×"] for k,v in rates.items()]
    n = len(get_image_files(path/'train'))
    report.write(f'Loaders on {path.name}', f'One pass over {n} training pictures, batch 64, two workers, decoded and resized to `float32` batches; the passes take turns.\n\n'+report.table(rows))

if __name__=='__main__': main(Path(sys.argv[1]), *sys.argv[2:])
