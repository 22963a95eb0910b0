"What 16 bits, channels-last and compile are worth: python benchmarks/precision.py [EPOCHS]. With a GPU xresnet50 at 128 px, without one simple_cnn at 64 px."
import gc,statistics,sys,time

import torch,torch.nn.functional as F
import report
from scratchai.all import Callback,Learner,NS,accuracy,doodles,folder_dls,set_seed,simple_cnn
import scratchai.precision # adds `to_fp16` and the others

gpu = torch.cuda.is_available()
device = torch.device('cuda' if gpu else 'cpu')
size,bs,lr,n_train = (128,256,3e-3,8000) if gpu else (64,64,1e-2,2000)
epochs = int((sys.argv[1:] or [6 if gpu else 5])[0])

def make_model():
    if not gpu: return simple_cnn()
    from scratchai.resnet import xresnet50
    return xresnet50(n_out=10)

class Resident:
    "Batches of pictures that lie on the device, so that nothing but the training is timed"
    def __init__(self, x, y, shuffle, channels_last):
        x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        self.x,self.y,self.shuffle = x.to(device),y.to(device),shuffle
    def __len__(self): return len(self.y)//bs # no smaller batch at the end, which would be compiled again
    def __iter__(self):
        order = (torch.randperm(len(self.y)) if self.shuffle else torch.arange(len(self.y))).to(device)
        for o in order.split(bs)[:len(self)]: yield self.x[o],self.y[o]

def sync():
    if gpu: torch.cuda.synchronize()

class Times(Callback):
    "Seconds of the training part of each epoch"
    order = -50
    def before_fit(self): self.secs = []
    def before_train(self):
        sync()
        self.start = time.perf_counter()
    def after_train(self):
        sync()
        self.secs.append(time.perf_counter()-self.start)

def row(name, secs, n, acc, base):
    rate = n/statistics.median(secs[1:] or secs)
    mem = [f'{(torch.cuda.max_memory_allocated()-data)/2**20:,.0f}'] if gpu else []
    return [name, f'{rate:,.0f}', f'{rate/(base or rate):.2f}', *mem, f'{secs[0]:.1f}', f'{acc:.1%}'],rate

def start():
    global data # bytes of the pictures
    set_seed(42)
    torch._dynamo.reset()
    gc.collect()
    data = torch.cuda.memory_allocated() if gpu else 0
    if gpu: torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()

def ours(dls, amp, channels_last, compiled):
    "Seconds of each epoch, accuracy, skipped steps"
    start()
    learn = Learner(dls, make_model(), metrics=accuracy, cbs=Times)
    if amp: getattr(learn, f'to_{amp}')()
    if channels_last: learn.to_channelslast(use_amp=False)
    if compiled: learn.compile()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return learn.times.secs,learn.history[-1]['accuracy'],learn.mixed_precision.skipped if amp else 0

def plain(dls):
    "The same by a loop of plain PyTorch: float16, channels-last, AdamW"
    start()
    model = make_model().to(device).to(memory_format=torch.channels_last)
    opt,scaler,secs = torch.optim.AdamW(list(model.parameters()), lr=lr, eps=1e-5),torch.amp.GradScaler(),[]
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, lr, epochs*len(dls.train), pct_start=0.25)
    for _ in range(epochs):
        sync()
        t = time.perf_counter()
        model.train()
        for x,y in dls.train:
            with torch.autocast('cuda', torch.float16): loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(opt), scaler.update(), sched.step(), opt.zero_grad()
        sync()
        secs.append(time.perf_counter()-t)
    model.eval()
    with torch.no_grad(): right = sum((model(x).argmax(1)==y).sum().item() for x,y in dls.valid)
    return secs,right/len(dls.valid)/bs

def main():
    loaded = folder_dls(doodles(n_train=n_train, n_valid=n_train//4), size=size, bs=bs, device='cpu')
    parts = {k: [torch.cat(o) for o in zip(*getattr(loaded, k))] for k in ('train','valid')}
    loaded.close()
    def resident(cl): return NS(**{k:Resident(*xy, k=='train', cl) for k,xy in parts.items()}, device=device)
    by_order = {cl:resident(cl) for cl in (False,True)}
    n = len(by_order[True].train)*bs
    head = ['', 'images/s', 'times', *(['peak MB beside the pictures'] if gpu else []), 'first epoch s', 'accuracy']
    rows,base,skips = [head],None,[]
    if gpu:
        torch.backends.cudnn.allow_tf32 = False
        secs,acc,_ = ours(by_order[False], None, False, False)
        rows.append(row('float32, TF32 off', secs, n, acc, None)[0])
        torch.backends.cudnn.allow_tf32 = True
    kinds = [(None,'float32'),*([('fp16','float16')] if gpu else []),('bf16','bfloat16')]
    for (amp,name),cl,compiled in [*[(k,cl,False) for k in kinds for cl in (False,True)], (kinds[-1],True,True)]:
        secs,acc,skipped = ours(by_order[cl], amp, cl, compiled)
        r,rate = row(name+', channels-last'*cl+', compiled'*compiled, secs, n, acc, base)
        base = base or rate
        rows.append(r)
        if skipped: skips.append(f'{r[0]}: {skipped}')
        print(r, flush=True)
    if gpu:
        secs,acc = plain(by_order[True])
        rows.append(row('plain PyTorch: float16, channels-last, `GradScaler`, `AdamW`', secs, n, acc, base)[0])
    what = f'{"xresnet50" if gpu else "simple_cnn"} on {n:,} doodles of {size} px'
    more = ' `float32` multiplies in TF32 where it is not off, PyTorch\'s default for convolutions.' if gpu else ' There is no GPU, so no `float16`.'
    report.write(f'Precision: {what}', f"{report.table(rows)}\n\n{epochs} epochs of 1cycle, batch {bs}; the pictures lie on the device as normalised `float32`, in the order of the row. "
        f"Rate: median of the epochs after the first, training part; the first one compiles.{more} Steps skipped: {', '.join(skips) or 'none'}.")

if __name__=='__main__': main()
