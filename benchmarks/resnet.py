"Our ResNets beside torchvision's, with the same weights and input: milliseconds of forward and backward, and the largest difference"
import argparse,sys
from pathlib import Path
from statistics import median
from time import perf_counter,process_time

import torch
sys.path.insert(0, str(Path(__file__).parent))
import report

def step(m, x, sync):
    "Milliseconds of a forward and a backward pass; on a CPU of its own processor time, which other programs change less"
    clock = perf_counter if x.is_cuda else process_time
    start = clock()
    m(x).sum().backward()
    sync()
    return (clock()-start)*1e3

def measure(name, x, rounds, sync):
    from scratchai.resnet import models
    import torchvision.models as tv
    ours,theirs = getattr(models, name)().to(x.device),getattr(tv, name)().to(x.device)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad(): diff = (ours.eval()(x)-theirs.eval()(x)).abs().max().item()
    both = ours.train(),theirs.train()
    for m in both: step(m, x, sync)
    turns = []
    for i in range(rounds): # they take turns, and in turns begin
        a,b = [step(m, x, sync) for m in both[::1 if i%2 else -1]]
        turns.append((a,b) if i%2 else (b,a))
    mine,other = [min(o) for o in zip(*turns)]
    return [name, f'{mine:.1f}', f'{other:.1f}', f'{median(a/b for a,b in turns):.3f}', f'{diff:.0e}']

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='where to measure')
    p.add_argument('--rounds', type=int, default=20, help='rounds; the fastest of each counts, and the median of their ratios')
    p.add_argument('--bs', type=int, default=8, help='pictures in a batch')
    p.add_argument('--size', type=int, default=96, help='their height and width')
    a = p.parse_args()
    try:
        import peers # lets torchvision import
        import torchvision
    except ImportError: return print('resnet.py: skipped, it needs torchvision (benchmarks/requirements.txt)')
    if a.device=='cpu': torch.set_num_threads(1)
    sync = torch.cuda.synchronize if a.device.startswith('cuda') else lambda: None
    x = torch.randn(a.bs, 3, a.size, a.size, device=a.device)
    rows = [['network', 'ours, ms', 'torchvision, ms', 'ratio, median', 'outputs differ by']]
    rows += [measure(o, x, a.rounds, sync) for o in ('resnet18','resnet34','resnet50')]
    report.write('ResNets', f'Forward and backward in training, {a.bs} pictures of {a.size} by {a.size} pixels, {a.device}'
        f'{", 1 thread, processor time" if a.device=="cpu" else ""}; {a.rounds} rounds, the fastest of each and the median of the ratios.\n\n{report.table(rows)}')

if __name__=='__main__': main()
