"What pretraining is worth on photographs: transfer.py [--source tinynette-64] [--target tinypets-64], two folders in Imagenette's layout"
import argparse,tempfile
from pathlib import Path
from statistics import mean

import report

def part(path, n):
    "At most `n` training pictures of each class, and all validation pictures"
    from scratchai.all import get_image_files
    train,val = [get_image_files(path/o).sorted() for o in ('train','val')]
    return [o for k in {f.parent for f in train} for o in [f for f in train if f.parent==k][:n]] + list(val)

def loaders(path, n, a):
    from scratchai.all import GrandparentSplitter,ImageDataLoaders,Normalize,imagenet_stats,parent_label
    return ImageDataLoaders.from_path_func(path, sorted(part(path, n)), parent_label, splitter=GrandparentSplitter(valid_name='val'),
        size=a.size, bs=a.bs, seed=1, num_workers=0, device=a.device, cache='memory', batch_tfms=Normalize.from_stats(*imagenet_stats))

def quiet(learn, f):
    "Accuracy after `f(learn)`; nothing is validated before the last epoch of a fit"
    from scratchai.all import Callback,CancelValidException
    def before_validate(cb):
        if cb.epoch+1<cb.n_epoch: raise CancelValidException()
    learn.add_cb(Callback(before_validate=before_validate))
    with learn.no_bar(), learn.no_logging(): f(learn)
    return float(learn.history[-1]['accuracy'])

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--source', type=Path, help='to pretrain on, all of it')
    p.add_argument('--target', type=Path, help='to transfer to, few pictures of it')
    p.add_argument('--arch', default='xresnet18', help='a network of chapter 13')
    p.add_argument('--n', type=int, nargs='+', default=[20], help='training pictures a class')
    p.add_argument('--pretrain', type=int, default=10, help='epochs on the source')
    p.add_argument('--epochs', type=int, default=20, help='epochs on the target')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--lr', type=float, default=3e-3, help='the highest rate of all trainings; of the head in `fine_tune`')
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--device', default=None)
    a = p.parse_args()
    if not (a.source and a.target): return print('transfer.py: skipped, it needs two folders of pictures, --source and --target')
    from scratchai.all import Learner,accuracy,set_seed
    from scratchai.resnet import models
    from scratchai.transfer import vision_learner
    from safetensors.torch import save_file
    arch,source = getattr(models, a.arch),loaders(a.source, None, a)
    set_seed(0)
    learn = Learner(source, arch(n_out=source.c), metrics=accuracy)
    done = quiet(learn, lambda o: o.fit_one_cycle(a.pretrain, a.lr))
    f,half = Path(tempfile.mkdtemp())/'source.safetensors',a.epochs//2
    save_file({k: v.cpu().contiguous() for k,v in learn.model.state_dict().items()}, f)
    def whole(o):
        o.unfreeze()
        o.fit_one_cycle(a.epochs, a.lr)
    ways = {'from nothing': (whole, False), 'pretrained, all at one rate': (whole, f), 'pretrained, head only': (lambda o: o.fit_one_cycle(a.epochs, a.lr), f),
        'pretrained, `fine_tune`': (lambda o: o.fine_tune(a.epochs-half, 2*a.lr, freeze_epochs=half), f)}
    rows = [['training pictures a class', *ways]]
    for n in a.n:
        target,row = loaders(a.target, n, a),[n]
        for go,pretrained in ways.values():
            accs = []
            for seed in range(a.seeds):
                set_seed(seed)
                accs.append(quiet(vision_learner(target, arch, pretrained=pretrained, metrics=accuracy), go))
            row.append(f'{mean(accs):.1%} ({min(accs):.1%} to {max(accs):.1%})')
        rows.append(row)
        report.write('Transfer', f'Accuracy of {a.arch} on {a.target.name} ({target.c} classes, {len(target.valid_ds)} pictures to validate on) after '
            f'{a.epochs} epochs, with weights from {a.pretrain} epochs on {a.source.name} ({done:.1%} there), {a.size} pixels, batches of {a.bs}, '
            f'highest rate {a.lr}; mean of {a.seeds} seeds, and the range.\n\n{report.table(rows)}')

if __name__=='__main__': main()
