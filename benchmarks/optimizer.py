"""Time of an optimizer step on the 116 parameter tensors of an xresnet34: ours by default and compiled, beside `torch.optim`.
Compiled also for a processor that has AVX2 only, where this one has AVX-512.

Usage: python benchmarks/optimizer.py [ROUNDS]"""
import os,platform,sys,time
import torch
from report import table,write
from scratchai.optimizer import SGD,Adam
import scratchai.fused # adds `compile`

def avx2(opt):
    "The steps of the compiled `opt`, for a processor with AVX2 only; its kernel is made in the second step"
    os.environ['CXX'],was = f"{os.environ.get('CXX') or 'g++'} -mno-avx512f",os.environ.get('CXX')
    opt.compile().step(), opt.step()
    os.environ.pop('CXX') if was is None else os.environ.update(CXX=was)
    return opt.step

def xresnet34_shapes(c_out=1000):
    "Shapes of all parameters, from the architecture's rule"
    def conv(ni, nf, ks=3): return [(nf,ni,ks,ks), (nf,), (nf,)] # with the weight and bias of its batch normalisation
    res = conv(3, 32) + conv(32, 32) + conv(32, 64)
    for ni,nf,n in (64,64,3),(64,128,4),(128,256,6),(256,512,3):
        for i in range(n): res += conv(ni if i==0 else nf, nf) + conv(nf, nf) + (conv(ni, nf, 1) if i==0 and ni!=nf else [])
    return res + [(c_out,512), (c_out,)]

def params(device):
    torch.manual_seed(42)
    ps = [torch.nn.Parameter(torch.randn(s, device=device)*0.05) for s in xresnet34_shapes()]
    for p in ps: p.grad = torch.randn_like(p)*0.01
    return ps

def sync(): torch.cuda.is_available() and torch.cuda.synchronize()

def timed(f):
    sync()
    start = time.perf_counter()
    f()
    sync()
    return time.perf_counter()-start

def copy_rate(device, n=40_000_000):
    "Bytes read and written a second, by the fastest of several ways to stream through memory"
    a,b = torch.zeros(n, device=device),torch.ones(n, device=device)
    return max(k*4*n/min(timed(f) for _ in range(15)) for k,f in ((2,lambda: b.copy_(a)), (2,lambda: b.mul_(1.)), (3,lambda: torch.add(a, b, out=b))))

def contestants(device):
    "Name → (what it is compared with, a step)"
    O,mk = torch.optim,lambda: params(device)
    def adamw(**kw): return O.AdamW(mk(), lr=1e-3, betas=(0.9,0.99), eps=1e-5, weight_decay=0.01, **kw).step
    def sgd(**kw): return O.SGD(mk(), lr=1e-2, momentum=0.9, **kw).step
    def ours(): return {'SGD, momentum 0.9': SGD(mk(), lr=1e-2, mom=0.9), 'AdamW': Adam(mk(), lr=1e-3)}
    res = {k:dict(foreach=f(foreach=True), step=ours()[k].step, fused=f(fused=True), compiled=ours()[k].compile().step)
        for k,f in {'SGD, momentum 0.9':sgd, 'AdamW':adamw}.items()}
    if device=='cpu' and platform.machine() in ('x86_64','AMD64'):
        for k,fs in res.items(): fs['avx2'] = avx2(ours()[k])
    return res

def main(rounds=40):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    shapes = xresnet34_shapes()
    n = sum(torch.Size(s).numel() for s in shapes)
    assert (len(shapes),n) == (116,21_816_904), 'the shapes are not those of fastai'
    rate,rows,warm = copy_rate(device),[['optimizer', 'floor ms', 'torch foreach ms', 'ours ms', 'ratio', 'torch fused ms', 'ours compiled ms', 'ratio', 'for AVX2 ms', 'ratio', 'first compiled step s']],{}
    for name,fs in contestants(device).items():
        for f in fs.values(): f()
        warm = timed(fs['compiled']) # state is there, so this step builds the kernel
        for f in fs.values(): f()
        times = {k:[] for k in fs}
        for _ in range(rounds):
            for k,f in fs.items(): times[k].append(timed(f)*1e3)
        t = {k:sorted(v)[len(v)//4] for k,v in times.items()}
        narrow = [f"{t['avx2']:.1f}", f"**{t['avx2']/t['fused']:.2f}**"] if 'avx2' in t else ['', '']
        floor = n*4*(5 if 'SGD' in name else 7)/rate*1e3
        rows.append([name, f'{floor:.1f}', f"{t['foreach']:.1f}", f"{t['step']:.1f}", f"**{t['step']/t['foreach']:.2f}**",
                     f"{t['fused']:.1f}", f"{t['compiled']:.1f}", f"**{t['compiled']/t['fused']:.2f}**", *narrow, f'{warm:.1f}'])
    write('Optimizer step', f'''A step on xresnet34's {len(shapes)} tensors, {n/1e6:.1f} million `float32` numbers, on {device}; lower quartile of {rounds} rounds in which all take turns. \
Ratios are ours over PyTorch's: the default step against `foreach=True`, after `compile()` against `fused=True`, also with a kernel for AVX2 only (`CXX='g++ -mno-avx512f'`). \
The floor is the bytes that a step must move (SGD 5 transfers a number, AdamW 7) over the fastest rate at which this machine streamed through memory in the same run, {rate/1e9:.0f} GB/s.

{table(rows)}''')

if __name__=='__main__': main(*map(int, sys.argv[1:]))
