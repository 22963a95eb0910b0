"What a learner costs over a bare loop with the same model, loss, optimizer and batches in memory: ours beside fastai's."
import time,warnings
from functools import partial
import torch,torch.nn.functional as F
import peers,report
import fastai.callback.progress
from fastai import learner as fl,optimizer as fo
from fastai.losses import CrossEntropyLossFlat,MSELossFlat
from scratchai.core import set_seed
from scratchai.layers import simple_cnn
from scratchai.learner import Learner,RegModel,synth_dls
from scratchai.losses import cross_entropy,mse
from scratchai.optimizer import SGD

warnings.filterwarnings('ignore')

class Data:
    "Batches in memory, for either learner"
    def __init__(self, train, valid): self.train,self.valid,self.loaders,self.device = train,valid,[train,valid],torch.device('cpu')
    def __getitem__(self, i): return self.loaders[i]

def bare(data, model, loss_func, opt):
    "The loop without a learner"
    model.train()
    for xb,yb in data.train:
        loss_func(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()

def silent(learn):
    with learn.no_bar(),learn.no_logging(): learn.fit(1)

def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start

def costs(data, model, loss_func, fastai_loss, lr, reps):
    "Seconds an epoch: our bare loop and learner, fastai's bare loop and learner; the least of `reps` rounds, in which they take turns"
    ours = Learner(data, model, loss_func, partial(SGD, mom=0.9), lr=lr)
    theirs = fl.Learner(data, model, fastai_loss, partial(fo.SGD, mom=0.9), lr=lr)
    for o in (ours, theirs): o.create_opt()
    fs = [partial(bare, data, model, loss_func, ours.opt), partial(silent, ours), partial(bare, data, model, fastai_loss, theirs.opt), partial(silent, theirs)]
    for f in fs: f()
    return [min(o) for o in zip(*([timed(f) for f in fs] for _ in range(reps)))]

def row(name, n, ts):
    b,o,fb,f = [1e6*t/n for t in ts]
    return [name, f'{b:,.0f}', f'{o-b:,.0f} ({o/b-1:.2%})', f'{fb:,.0f}', f'{f-fb:,.0f} ({f/fb-1:.2%})']

def main():
    set_seed(42)
    line = Data(**synth_dls(n_trn=200, n_val=0).__dict__)
    ims = [(torch.randn(128,3,64,64), torch.randint(10, (128,))) for _ in range(8)]
    rows = [['model', 'bare loop', 'our learner adds', "bare loop, fastai's optimizer", "fastai's learner adds"],
        row('`a*x + b`, batch of 16 points', 200, costs(line, RegModel(), mse, MSELossFlat(), 1e-3, 40)),
        row('`simple_cnn`, batch of 128 pictures, 64 px', 8, costs(Data(ims, []), simple_cnn(), cross_entropy, CrossEntropyLossFlat(), 1e-3, 25))]
    report.write('The learner: cost of events, records and rows', 'Microseconds a training batch; default callbacks, no bar.\n\n'+report.table(rows))

if __name__=='__main__': main()
