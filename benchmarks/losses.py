"Our losses beside PyTorch's: microseconds of forward and backward"
import argparse,sys
from functools import partial
from pathlib import Path
from timeit import timeit

import torch,torch.nn.functional as F
sys.path.insert(0, str(Path(__file__).parent))
import report
from scratchai.losses import cross_entropy,logsumexp,mse

def by_hand(x, y):
    "The chapter's derivation: LogSumExp, then the mean of the right classes"
    m = x.max(-1, keepdim=True)[0]
    return -(x - m - (x-m).exp().sum(-1, keepdim=True).log())[range(len(y)), y].mean()

def best(fs, n, number, sync):
    "Microseconds of the fastest of `n` rounds of `number` calls; the candidates take turns"
    def run(f):
        for _ in range(number): f()
        sync()
    return [min(o)/number*1e6 for o in zip(*[[timeit(partial(run, f), number=1) for f in fs] for _ in range(n)])]

def cases(bs, c, device):
    "Name, inputs, ours, PyTorch's"
    g = torch.Generator().manual_seed(0)
    x,y = torch.randn(bs, c, generator=g).to(device).requires_grad_(),torch.randint(c, (bs,), generator=g).to(device)
    w,ignored = torch.rand(c, generator=g).to(device),torch.where(y%4==0, -100, y)
    for name,t,kw in (('cross_entropy',y,{}), ('… weight, a quarter ignored',ignored,dict(weight=w)), ('… label_smoothing=0.1',y,dict(label_smoothing=0.1))):
        yield name,x,partial(cross_entropy, targ=t, **kw),partial(F.cross_entropy, target=t, **kw)
    yield 'derivation by hand',x,partial(by_hand, y=y),partial(F.cross_entropy, target=y)
    yield 'logsumexp',x,lambda o: logsumexp(o).mean(),lambda o: torch.logsumexp(o, -1).mean()
    yield 'mse',x,partial(mse, targ=torch.zeros_like(x)),partial(F.mse_loss, target=torch.zeros_like(x))

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='where to measure')
    p.add_argument('--rounds', type=int, default=25, help='rounds, of which the fastest counts')
    a = p.parse_args()
    sync = torch.cuda.synchronize if a.device.startswith('cuda') else lambda: None
    rows = [['logits', 'loss', 'scratchai, µs', 'torch, µs', 'ratio']]
    for bs,c,number in ((128,10,100), (4096,1000,6)):
        for name,x,ours,theirs in cases(bs, c, a.device):
            t = best([lambda f=f: torch.autograd.grad(f(x), x) for f in (ours, theirs)], a.rounds, number, sync)
            rows.append([f'{bs} × {c}', name, f'{t[0]:,.0f}', f'{t[1]:,.0f}', f'{t[0]/t[1]:.2f}'])
    report.write('Losses', 'Forward and backward in float32, the fastest of several rounds in which the two take turns. A ratio below 1 is in our favour. '
        '*Derivation by hand* is what the chapter writes before it calls a kernel.\n\n' + report.table(rows))

if __name__=='__main__': main()
