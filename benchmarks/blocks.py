"Data blocks beside the road by hand and fastai's: blocks.py FOLDER [SIZE…]; the folder in Imagenette's layout. And what a tensor that keeps its class costs: blocks.py types"
import os,sys,time,timeit
from pathlib import Path
from statistics import median
import report,torch

bs,nw,seed = 64,2,1

def rate(dl):
    t = time.perf_counter()
    n = sum(len(b[0]) for b in dl)
    return n/(time.perf_counter()-t)

def by_hand(path, size):
    "Chapter 3: `Dataset`, `DataLoader`, `ToFloat`, `Normalize`"
    from scratchai.data import DataLoader,Dataset,FolderLabeller,Normalize,ToFloat,get_image_files,imagenet_stats
    ds = Dataset(get_image_files(path/'train'), FolderLabeller(path/'train'), size)
    return DataLoader(ds, bs, shuffle=True, drop_last=True, n_workers=nw, seed=seed, device='cpu', after_batch=[ToFloat(), Normalize(*imagenet_stats)])

def twice(get_image_files, path):
    "The training pictures, and then the same to validate on: `val` of photos-160 has other classes than `train`"
    fns = get_image_files(path/'train')
    return lambda o: list(fns)*2,lambda o: (range(len(fns)),range(len(fns), 2*len(fns)))

def block(path, size):
    from scratchai.block import CategoryBlock,DataBlock,ImageBlock
    from scratchai.crops import Resize
    from scratchai.data import Normalize,get_image_files,imagenet_stats,parent_label
    items,split = twice(get_image_files, path)
    d = DataBlock((ImageBlock,CategoryBlock), get_items=items, get_y=parent_label, splitter=split,
        item_tfms=Resize(size, method='squish'), batch_tfms=Normalize.from_stats(*imagenet_stats))
    return d.dataloaders(path, bs=bs, num_workers=nw, device='cpu', seed=seed).train

def factory(path, size):
    from scratchai.block import ImageDataLoaders
    from scratchai.data import Normalize,imagenet_stats
    tfms = Normalize.from_stats(*imagenet_stats)
    return ImageDataLoaders.from_folder(path, valid='train', size=size, batch_tfms=tfms, bs=bs, num_workers=nw, device='cpu', seed=seed).train

def fastai(path, size):
    import peers
    from fastai.vision.all import CategoryBlock,DataBlock,ImageBlock,Normalize,Resize,get_image_files,imagenet_stats,parent_label
    items,split = twice(get_image_files, path)
    d = DataBlock((ImageBlock,CategoryBlock), get_items=items, get_y=parent_label, splitter=split,
        item_tfms=Resize(size, method='squish'), batch_tfms=Normalize.from_stats(*imagenet_stats))
    return d.dataloaders(path, bs=bs, num_workers=nw, device='cpu').train

def rates(path, sizes, reps):
    path = Path(path)
    rows = [['size', 'road', 'images/s', 'share of the road by hand', "times fastai's"]]
    names = {by_hand:'by hand, chapter 3', block:'`DataBlock`', factory:'`ImageDataLoaders.from_folder`', fastai:"fastai's `DataBlock`"}
    for size in sizes:
        dls = {f: f(path, size) for f in names}
        hand,*others = [list(dls[f]) for f in (by_hand,block,factory)] # one epoch, which starts the workers
        for o in others:
            for a,b in zip(hand, o, strict=True): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]), 'other pictures than by hand'
        rate(dls[fastai])
        turns = [{f: rate(dl) for f,dl in dls.items()} for _ in range(reps)]
        def ratio(f, g): return median(o[f]/o[g] for o in turns)
        rows += [[size, name, f'{median(o[f] for o in turns):,.0f}', '' if f is fastai else f'{ratio(f, by_hand):.2f}', f'{ratio(f, fastai):.2f} ×'] for f,name in names.items()]
        for f in (by_hand,block,factory): dls[f].close()
    n = len(dls[by_hand].ds)
    report.write(f'Data blocks on {path.name}', f"An epoch of {n:,} training pictures, shuffled, batch {bs}, {nw} workers, `Resize(method='squish')`, as normalised `float32`; "
        f"medians of {reps} epochs in which the four take turns, and of the ratios in each turn. The batches of our three are equal to the last bit in the epoch before.\n\n{report.table(rows)}")

def us(fs, reps=200, n=200):
    "Microseconds a call of each of `fs`: the fastest of many rounds in which they take turns"
    best = [float('inf')]*len(fs)
    for _ in range(reps): best = [min(b, timeit.timeit(f, number=n)/n*1e6) for b,f in zip(best, fs)]
    return best

def types():
    import peers
    from fastai.vision.core import TensorImage as Fastai
    from scratchai.layers import simple_cnn
    from scratchai.transform import TensorImage
    torch.set_num_threads(1)
    class Hooked(torch.Tensor): "A subclass that says nothing of `__torch_function__`"
    x,model = torch.rand(1,3,8,8),simple_cnn(10)
    kinds = dict(Tensor=torch.Tensor, TensorImage=TensorImage, subclass=Hooked, fastai=Fastai)
    xs,big = ([o.as_subclass(k) for k in kinds.values()] for o in (x,torch.rand(64,3,64,64)))
    ops = {'`x*2`':lambda o: o*2, '`x.mean()`':lambda o: o.mean(), '`x[0]`':lambda o: o[0], '`x.to(x.device)`':lambda o: o.to('cpu'), '`x.shape`':lambda o: o.shape}
    rows = [['what', 'plain `Tensor`, µs', '`TensorImage`, µs', 'a bare subclass, µs', "fastai's `TensorImage`, µs"]]
    rows += [[k, *[f'{t:.2f}' for t in us([lambda o=o: f(o) for o in xs])]] for k,f in ops.items()]
    with torch.no_grad():
        for what,os,n in (('`simple_cnn`, a picture of 8 px',xs,20),('`simple_cnn`, 64 pictures of 64 px',big,1)):
            rows.append([what, *[f'{t:,.1f}' for t in us([lambda o=o: model(o) for o in os], 30, n)]])
    report.write('What a tensor that keeps its class costs', 'A call on one thread, the fastest of many rounds in which the four take turns. A bare subclass is `class Hooked(torch.Tensor): pass`.\n\n'+report.table(rows))

if __name__=='__main__':
    if sys.argv[1]=='types': types()
    else:
        rates(sys.argv[1], [int(o) for o in sys.argv[2:]] or [64], int(os.environ.get("REPS", 15)))
        types()
