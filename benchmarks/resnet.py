"Our ResNets beside torchvision's, with the same weights and input: milliseconds of forward and backward, and the largest difference"
import argparse,sys
from pathlib import Path
from time import perf_counter

import torch
sys.path.insert(0, str(Path(__file__).parent))
import report

def step(m, x, sync):
    "Milliseconds of a forward and a backward pass"
    start = perf_counter()
    m(x).sum().backward()
    sync()
    return (perf_counter()-start)*1e3

def measure(name, x, rounds, sync):
    from scratchai.resnet import models
    import torchvision.models as tv
    ours,theirs = getattr(models, name)().to(x.device),getattr(tv, name)().to(x.device)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad(): diff = (ours.eval()(x)-theirs.eval()(x)).abs().max().item()
    both = ours.train(),theirs.train()
    for m in both: step(m, x, sync)
    ms = [min(o) for o in zip(*[[step(m, x, sync) for m in both] for _ in range(rounds)])] # they take turns
    return [name, f'{ms[0]:.1f}', f'{ms[1]:.1f}', f'{ms[0]/ms[1]:.3f}', f'{diff:.0e}']

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='where to measure')
    p.add_argument('--rounds', type=int, default=10, help='rounds, of which the fastest counts')
    p.add_argument('--bs', type=int, default=8, help='pictures in a batch')
    p.add_argument('--size', type=int, default=96, help='their height and width')
    a = p.parse_args()
    try:
        import peers # lets torchvision import
        import torchvision
    except ImportError: return print('resnet.py: skipped, it needs torchvision (benchmarks/requirements.txt)')
    sync = torch.cuda.synchronize if a.device.startswith('cuda') else lambda: None
    x = torch.randn(a.bs, 3, a.size, a.size, device=a.device)
    rows = [['network', 'ours, ms', 'torchvision, ms', 'ratio', 'outputs differ by']]
    rows += [measure(o, x, a.rounds, sync) for o in ('resnet18','resnet34','resnet50')]
    report.write('ResNets', f'Forward and backward in training, {a.bs} pictures of {a.size} by {a.size} pixels, {a.device}, '
        f'{torch.get_num_threads()} threads, fastest of {a.rounds} rounds.\n\n{report.table(rows)}')

if __name__=='__main__': main()
