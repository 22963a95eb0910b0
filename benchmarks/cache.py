"What the cache is worth: python benchmarks/cache.py [train] FOLDER…; folders in Imagenette's layout, `train` for the book's CNN beside fastai and the floor"
import json,subprocess,sys,time
from pathlib import Path
from statistics import median
import torch

bs,size,lr,nw,epochs = 128,64,0.1,2,8

def rate(dl):
    t = time.perf_counter()
    n = sum(len(b[0]) for b in dl)
    return n/(time.perf_counter()-t)

def turns(path, size):
    "Number of pictures, and the median images/s of passes without and with the cache; a pass without, five with, in turn"
    from scratchai.all import ImageDataLoaders,Normalize,imagenet_stats
    valid = 'train' if path.name.startswith('photos') else 'val' # its photographs are one a class: `val` has other classes
    kwargs = dict(valid=valid, size=size, bs=64, num_workers=nw, seed=1, device='cpu', batch_tfms=Normalize.from_stats(*imagenet_stats))
    plain,cached = [ImageDataLoaders.from_folder(path, cache=o, **kwargs).train for o in (None,'memory')]
    rate(plain)
    while not cached.ds.in_memory: rate(cached) # a last, short batch is left out of each epoch
    rates = [(rate(plain), [rate(cached) for _ in range(5)]) for _ in range(9)]
    for o in (plain,cached): o.close()
    return len(plain.ds),median(a for a,_ in rates),median(sum((b for _,b in rates), []))

def passes(folders):
    import report
    rows = [['pictures', 'size', 'without, images/s', 'cached, images/s', 'ratio']]
    for path in map(Path, folders):
        for size in (64,128) if path.name.startswith('photos') else (64,):
            n,a,b = turns(path, size)
            rows.append([f'{n:,} of {path.name}', size, f'{a:,.0f}', f'{b:,.0f}', f'{b/a:.1f} ×'])
    report.write('The cache: a pass over the training pictures', f'Through `ImageDataLoaders.from_folder`: batch 64, shuffled, as normalised `float32`, two workers; medians of passes (9 without the cache, 45 with it, in turn).\n\n{report.table(rows)}')

def floor_step():
    "One step of plain torch on a batch in memory, in the faster of the two memory formats"
    from torch import nn,optim
    import torch.nn.functional as F
    x,y = torch.randn(bs,3,size,size).to(memory_format=torch.channels_last),torch.randint(0, 10, (bs,))
    convs = [l for ni,nf in [(3,16),(16,32),(32,64),(64,128)] for l in (nn.Conv2d(ni,nf,3,2,1), nn.ReLU())]
    m = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128,10)).to(memory_format=torch.channels_last)
    opt = optim.SGD(m.parameters(), lr)
    def step():
        t = time.perf_counter()
        F.cross_entropy(m(x), y).backward()
        opt.step(), opt.zero_grad()
        return time.perf_counter()-t
    return step

def ours(data):
    "Accuracy, training images/s over all, and for each epoch its training part's and the floor's, measured after it and not counted"
    from scratchai.all import Callback,ImageDataLoaders,Learner,Normalize,SGD,accuracy,imagenet_stats,set_seed,simple_cnn
    set_seed(42)
    rates,paused,step = [],[],floor_step()
    class Timer(Callback):
        def before_train(self): self.t = time.perf_counter()
        def after_train(self): rates.append([len(self.dls.train)*bs/(time.perf_counter()-self.t)])
        def after_epoch(self):
            t,state = time.perf_counter(),torch.get_rng_state()
            rates[-1].append(bs/median(step() for _ in range(12)))
            torch.set_rng_state(state)
            paused.append(time.perf_counter()-t)
    t = time.perf_counter()
    dls = ImageDataLoaders.from_folder(data, size=size, bs=bs, num_workers=nw, device='cpu', cache='memory', batch_tfms=Normalize.from_stats(*imagenet_stats))
    learn = Learner(dls, simple_cnn(dls.c), opt_func=SGD, metrics=accuracy, cbs=Timer())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return float(learn.history[-1]['accuracy']),len(dls.train_ds)*epochs/(time.perf_counter()-t-sum(paused)),rates

def fastai(data):
    import train_cnn
    return *train_cnn.fastai(data, epochs),[]

def train(data, reps=3):
    import report
    res = {o: [] for o in ('ours','fastai')}
    for _ in range(reps): # in turn, each in a fresh process
        for who in res: res[who].append(json.loads(subprocess.run([sys.executable, __file__, who, data], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]))
    med = {who: median(r for _,r,_ in v) for who,v in res.items()}
    names = {'ours':'ours, cached', 'fastai':'fastai'}
    rows = [['', 'training images/s (median)', 'each run', 'accuracy']]+[[names[who], f'{med[who]:,.0f}', ', '.join(f'{r:,.0f}' for _,r,_ in v), f'{v[0][0]:.1%}'] for who,v in res.items()]
    later = [o for *_,v in res['ours'] for o in v[1:]]
    rate,floor,share = median(r for r,_ in later),median(f for _,f in later),median(r/f for r,f in later)
    report.write(f'The book\'s CNN with a cache: {epochs} epochs on {Path(data).name}, batch {bs}, SGD, 1cycle to {lr}', f"{report.table(rows)}\n\n"
        f"**{med['ours']/med['fastai']:.2f}** times fastai's rate; in our time is everything from the listing of the files to the last validation, the first epoch included. "
        f"The training part of an epoch alone, from the second on: {rate:,.0f} images/s, **{share:.0%}** of the floor of {floor:,.0f} (plain torch on a batch in memory, a dozen steps after each epoch; medians).")

if __name__=='__main__':
    what,*rest = sys.argv[1:]
    if what in ('ours','fastai'): print(json.dumps({'ours':ours, 'fastai':fastai}[what](*rest)))
    elif what=='train': train(*rest)
    else:
        passes(sys.argv[1:])
        train(next((o for o in sys.argv[1:] if 'photos' not in Path(o).name), sys.argv[1]))
