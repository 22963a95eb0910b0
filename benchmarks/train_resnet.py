"xresnet18 on a folder of pictures, ours, fastai's, and a recipe of ours: train_resnet.py DATA [--seeds 3] [--threads N] [--ways WHO …] [--log FILE]"
import argparse,itertools,json,os,subprocess,sys,time
from pathlib import Path
from statistics import mean,median

size = 64

def floor(steps=6, bs=128):
    "Training images/s of plain torch: the same network of `nn` layers, one batch in memory"
    import peers,torch
    from fastai.vision.models.xresnet import xresnet18
    model,xb,yb = xresnet18(n_out=10).train(),torch.randn(bs, 3, size, size),torch.arange(bs)%10
    opt,loss_func = torch.optim.Adam(model.parameters(), lr=1e-4),torch.nn.CrossEntropyLoss()
    def step():
        loss_func(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()
    step()
    t = time.perf_counter()
    for _ in range(steps): step()
    return dict(rate=bs*steps/(time.perf_counter()-t))

def train(learn, epochs, lr, cb, **kwargs):
    "Accuracy, seconds, and training images/s of the training part of an epoch (median, the first left out)"
    class Clock(cb):
        times = ()
        def before_train(self): self.t = time.perf_counter()
        def after_train(self): self.times += (time.perf_counter()-self.t,)
    clock = Clock()
    t,c = time.perf_counter(),os.times()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, cbs=clock, **kwargs)
    t,c = time.perf_counter()-t,[b-a for a,b in zip(c, os.times())]
    n = sum(len(xb) for xb,*_ in learn.dls.train) # the last batch may be dropped
    return dict(acc=float(learn.recorder.values[-1][-1]), rate=n/median(clock.times[1:] or clock.times), secs=t, cpu=sum(c[:4]))

def ours(data, epochs, seed, **kwargs):
    from scratchai.all import Callback,ImageDataLoaders,Learner,Normalize,accuracy,imagenet_stats,set_seed,xresnet18
    set_seed(seed)
    dls = ImageDataLoaders.from_folder(data, valid='val', size=size, bs=128, seed=seed, device='cpu', batch_tfms=Normalize.from_stats(*imagenet_stats), **kwargs)
    return train(Learner(dls, xresnet18(n_out=dls.c), metrics=accuracy), epochs, 3e-3, Callback)

def fastai(data, epochs, seed):
    import peers
    from fastai.vision.all import Callback,ImageDataLoaders,Learner,Normalize,Resize,accuracy,imagenet_stats,set_seed,xresnet18
    set_seed(seed)
    dls = ImageDataLoaders.from_folder(data, valid='val', bs=128, num_workers=2, device='cpu', seed=seed, item_tfms=Resize(size, method='squish'),
        batch_tfms=Normalize.from_stats(*imagenet_stats))
    return train(Learner(dls, xresnet18(n_out=dls.c), metrics=accuracy), epochs, 3e-3, Callback)

def recipe(data, epochs, seed, small=6):
    "Batches of 32; flips and boxes of 80 % and more of a picture, at 48 pixels for the first six epochs and then at 64; label smoothing; decay 0.05"
    from scratchai.all import (Callback,CrossEntropyLossFlat,Flip,ImageDataLoaders,Learner,Normalize,RandomResizedCropGPU,accuracy,imagenet_stats,
        set_seed,xresnet18)
    class Crop(RandomResizedCropGPU):
        def before_call(self, b, split_idx):
            super().before_call(b, split_idx)
            self.do = split_idx==0 # validation sees whole pictures at 64 pixels
    class Sizes(Callback):
        def before_epoch(self):
            for o in self.dls.train.after_batch.fs:
                if isinstance(o, Crop): o.size = (48,48) if self.epoch<small else (size,size)
    set_seed(seed)
    dls = ImageDataLoaders.from_folder(data, valid='val', size=size, bs=32, seed=seed, device='cpu', num_workers=0, cache='memory',
        batch_tfms=[Flip(), Crop(size, 0.8), Normalize.from_stats(*imagenet_stats)])
    learn = Learner(dls, xresnet18(n_out=dls.c), loss_func=CrossEntropyLossFlat(label_smoothing=0.1), metrics=accuracy, wd=0.05, cbs=Sizes)
    learn.create_opt()
    learn.opt.compile()
    return train(learn, epochs, 2e-3, Callback)

def same(data, epochs=3):
    "Losses and accuracy after each epoch of both learners, on the same batches, from the same first weights, in float64"
    import peers
    import fastai.vision.all as fa,scratchai.all as sc
    sc.set_seed(0)
    dls = sc.ImageDataLoaders.from_folder(data, valid='val', size=size, bs=32, device='cpu', num_workers=0, batch_tfms=sc.Normalize.from_stats(*sc.imagenet_stats))
    train,valid = [[(x.as_subclass(sc.Tensor).double(),y.as_subclass(sc.Tensor)) for x,y in itertools.islice(dl, n)] for dl,n in ((dls.train,10), (dls.valid,4))]
    m1,m2 = sc.xresnet18(n_out=dls.c).double(),fa.xresnet18(n_out=dls.c).double()
    for p,q in zip(m1.parameters(), m2.parameters(), strict=True): q.data.copy_(p.data)
    learns = {'ours': sc.Learner(sc.DataLoaders(train, valid, device='cpu'), m1, metrics=sc.accuracy),
        'fastai': fa.Learner(fa.DataLoaders(train, valid), m2, loss_func=fa.CrossEntropyLossFlat(), metrics=fa.accuracy)}
    for who,learn in learns.items():
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
        for i,o in enumerate(learn.recorder.values): yield [who, i, *(f'{float(v):.7f}' for v in o[-3:])]

def cached(*args): return ours(*args, num_workers=0, cache='memory')
equal = {'ours': (ours,5), 'ours, cached': (cached,5), 'fastai': (fastai,5), 'floor': (lambda *_: floor(),5)}
better = {'our recipe, 11 epochs': (recipe,11), 'fastai, 10 epochs': (fastai,10)}

def one(a, who, seed):
    "A training in a fresh process, unless the log has it"
    key = f'{who}, seed {seed}, {a.epochs or "all"} epochs, {a.threads} threads'
    lines = [json.loads(o) for o in Path(a.log).read_text().splitlines()] if a.log and Path(a.log).exists() else []
    for o in lines:
        if o['key']==key: return o
    env = dict(os.environ, OMP_NUM_THREADS=str(a.threads))
    cmd = [sys.executable, __file__, a.data, '--one', who, str(seed)] + (['--epochs', str(a.epochs)] if a.epochs else [])
    res = dict(key=key, **json.loads(subprocess.run(cmd, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]))
    print(res, file=sys.stderr, flush=True)
    if a.log:
        with open(a.log, 'a') as f: f.write(json.dumps(res)+'\n')
    return res

def rows_of(res, base):
    yield ['', 'accuracy, mean', 'each seed', 'training images/s', f'times that of {base}', 'of the floor', 'seconds', 'processor seconds']
    def ratio(v, o): return f"{median(x['rate']/y['rate'] for x,y in zip(v, res[o])):.2f}" if o in res else ''
    for who,v in res.items():
        accs = [o['acc'] for o in v if 'acc' in o]
        yield [who, *([f'{mean(accs):.1%}', ', '.join(f'{o:.1%}' for o in accs)] if accs else ['']*2), f"{median(o['rate'] for o in v):.0f}", ratio(v, base),
            ratio(v, 'floor'), *([f"{median(o[k] for o in v):.0f}" for k in ('secs','cpu')] if accs else ['']*2)]

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('data')
    p.add_argument('--epochs', type=int, help='for all, instead of 5, 11 and 10')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--log', help='file of trainings that are done; more are added to it')
    p.add_argument('--parts', nargs='+', default=['same','equal','better'])
    p.add_argument('--ways', nargs='+', help='only these')
    p.add_argument('--note', default='', help='what a reader of the table should know of the machine')
    p.add_argument('--one', nargs=2, metavar=('WHO', 'SEED'), help='one training, printed as JSON')
    a = p.parse_args()
    if a.one:
        f,epochs = {**equal, **better}[a.one[0]]
        return print(json.dumps(f(a.data, a.epochs or epochs, int(a.one[1]))))
    import report
    for part in a.parts:
        if part=='same':
            rows = [['', 'epoch', 'training loss', 'validation loss', 'accuracy'], *same(a.data)]
            report.write(f'xresnet18 on {Path(a.data).name}: the same first weights and batches', f'{report.table(rows)}\n\nTen batches of 32, '
                'four to validate on, Adam, 1cycle to 3e-3, in float64, so that rounding stays small: the two learners do the same arithmetic.')
            continue
        ways,base = dict(equal=(equal,'fastai'), better=(better,'fastai, 10 epochs'))[part]
        res = {who: [] for who in ways if who in (a.ways or ways)}
        for seed in range(a.seeds):
            for who in res: res[who].append(one(a, who, seed))
        title = f'xresnet18 on {Path(a.data).name}: '+(f'the same training, {a.epochs or 5} epochs, {a.threads} threads' if part=='equal' else 'a recipe')
        text = ('Batch 128, Adam, 1cycle to 3e-3, the rate is that of the training part of an epoch. The floor is plain torch on one batch in memory.' if part=='equal' else f'The recipe: {recipe.__doc__}; '
            'Adam, 1cycle to 2e-3, compiled optimizer. fastai: batch 128, Adam, 1cycle to 3e-3.')
        report.write(title, f'{report.table([*rows_of(res, base)])}\n\n{text} Medians over the seeds, of the ratios too. {a.note}')

if __name__=='__main__': main()
