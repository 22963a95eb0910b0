"What a learner costs over a bare loop with the same model, loss, optimizer and batches in memory: ours beside fastai's."
import statistics,time,warnings
from functools import partial
import torch,torch.nn.functional as F
import peers,report
from fastai import learner as fl,optimizer as fo
from fastai.callback import progress
from fastai.losses import CrossEntropyLossFlat,MSELossFlat
from scratchai.core import set_seed
from scratchai.layers import simple_cnn
from scratchai.learner import Learner,RegModel,synth_dls
from scratchai.losses import cross_entropy,mse
import scratchai.recorder # the callbacks that every learner begins with
from scratchai.optimizer import SGD

warnings.filterwarnings('ignore')

class Data:
    "Batches in memory, for either learner"
    def __init__(self, train, valid): self.train,self.valid,self.loaders,self.device = train,valid,[train,valid],torch.device('cpu')
    def __getitem__(self, i): return self.loaders[i]

def bare(data, model, loss_func, opt, n_epoch):
    "The loop without a learner"
    model.train()
    for _ in range(n_epoch):
        for xb,yb in data.train:
            loss_func(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()

def silent(learn, n_epoch):
    with learn.no_bar(),learn.no_logging(): learn.fit(n_epoch)

def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start

def costs(data, model, loss_func, fastai_loss, n_epoch, rounds, lr=1e-3):
    "Microseconds a batch of our bare loop, our learner, fastai's bare loop and learner, and a second bare loop, for each of `rounds` in which they take turns"
    ours = Learner(data, model, loss_func, partial(SGD, mom=0.9), lr=lr)
    theirs = fl.Learner(data, model, fastai_loss, partial(fo.SGD, mom=0.9), lr=lr)
    for o in (ours, theirs): o.create_opt()
    one = partial(bare, data, model, loss_func, ours.opt, n_epoch)
    fs = [one, partial(silent, ours, n_epoch), partial(bare, data, model, fastai_loss, theirs.opt, n_epoch), partial(silent, theirs, n_epoch), one]
    for f in fs: f()
    n = len(data.train)*n_epoch
    return [[timed(f)/n*1e6 for f in fs] for _ in range(rounds)]

def row(name, ts):
    b,fb = [statistics.median(o) for o in list(zip(*ts))[:3:2]]
    diffs = [statistics.median(o) for o in zip(*((o-b,f-fb,b2-b) for b,o,fb,f,b2 in ts))]
    return [name, f'{b:,.0f}', *(f'{d:,.0f} ({d/base:+.2%})' for d,base in zip(diffs, (b,fb,b)))]

def main():
    set_seed(42)
    line = Data(*synth_dls(n_trn=200, n_val=0))
    ims = [(torch.randn(128,3,64,64), torch.randint(10, (128,))) for _ in range(8)]
    rows = [['model', 'bare loop', 'our learner adds', "fastai's learner adds to its own", 'a second bare loop adds'],
        row('`a*x + b`, batch of 16 points', costs(line, RegModel(), mse, MSELossFlat(), 1, 40)),
        row('`simple_cnn`, batch of 128 pictures, 64 px', costs(Data(ims, []), simple_cnn(), cross_entropy, CrossEntropyLossFlat(), 3, 15))]
    report.write('The learner: cost of events, records and rows', 'Microseconds a training batch, medians of rounds in which all take turns, '
        'each learner against a bare loop with its own optimizer in the same round; default callbacks, no bar. '
        'The last column compares the bare loop with itself, and shows how much of a difference is noise.\n\n'+report.table(rows))

if __name__=='__main__': main()
