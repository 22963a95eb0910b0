"From a file to answers: predict.py FOLDER [TURNS]. How long the first takes, beside torch alone, and how fast a folder is read, beside fastai's `get_preds` with the same network"
import operator,os,subprocess,sys,tempfile,time
from functools import partial
from pathlib import Path
from statistics import median
import peers,report

bare = '''
import torch,torch.nn.functional as F
def conv(x, nf, ks=3, stride=1):
    one = torch.ones(nf)
    return F.batch_norm(F.conv2d(x, torch.ones(nf, x.shape[1], ks, ks), stride=stride, padding=ks//2), one, one, one, one)
with torch.no_grad():
    x = F.max_pool2d(F.relu(conv(torch.ones(1, 3, 128, 128), 64, 7, 2)), 3, 2, 1)
    for nf,s in ((64,1),(64,1),(128,2),(128,1),(256,2),(256,1),(512,2),(512,1)):
        y = conv(F.relu(conv(x, nf, 3, s)), nf)
        x = F.relu(y + (conv(x, nf, 1, s) if s>1 or x.shape[1]!=nf else x))
    print((x.mean((2,3)) @ torch.ones(512, 10)).softmax(1).argmax().item())'''
ours = '''
import sys
from scratchai.export import Predictor
print(Predictor.load(sys.argv[1]).predict(sys.argv[2])[0])'''

script = f'''
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import peers
from fastai.vision.all import load_learner
learn,fns = load_learner(sys.argv[1]),sys.argv[2:]
with learn.no_bar(), learn.no_logging(): probs = learn.get_preds(dl=learn.dls.test_dl(fns, num_workers=2))[0]
for fn,p,i in zip(fns, *probs.max(1)): print(fn, learn.dls.vocab[i], p.item(), sep='\\t')'''

bytecode = tempfile.TemporaryDirectory()
label = operator.itemgetter(8) # the last figure of the name of a file: ten classes

def run(*args):
    "A Python process, with bytecode at hand, as in what pip has installed"
    env = {**{k: v for k,v in os.environ.items() if k!='PYTHONDONTWRITEBYTECODE'}, 'PYTHONPYCACHEPREFIX':bytecode.name}
    subprocess.run([sys.executable, '-W', 'ignore', *map(str, args)], env=env, check=True, stdout=subprocess.DEVNULL)

def exported(net, size, fns, path):
    "A network that was not trained, in a file"
    from scratchai.all import ImageDataLoaders,Learner,Normalize,Resize,imagenet_stats
    dls = ImageDataLoaders.from_name_func(path, fns, label, item_tfms=Resize(size), batch_tfms=Normalize.from_stats(*imagenet_stats), bs=64)
    return Learner(dls, net(n_out=10), path=path).export(f'{net.__name__}{size}.pkl')

def fastai_learner(model, size, fns):
    "fastai's learner with the same network"
    from fastai.vision.all import CrossEntropyLossFlat,ImageDataLoaders,Learner,Normalize,Resize,imagenet_stats
    from scratchai.all import to_torch
    dls = ImageDataLoaders.from_name_func('.', list(fns), label, item_tfms=Resize(size), batch_tfms=Normalize.from_stats(*imagenet_stats), bs=64, num_workers=2, device='cpu')
    return Learner(dls, to_torch(model), CrossEntropyLossFlat())

def seconds(f):
    t = time.perf_counter()
    f()
    return time.perf_counter()-t

def in_turn(ways, turns):
    "Median seconds of each, after a first time that does not count"
    for f in ways.values(): f()
    return {k: median(o) for k,o in zip(ways, zip(*[[seconds(f) for f in ways.values()] for _ in range(turns)]))}

def first_answer(file, fn, turns):
    "Seconds from the start of a process"
    ways = {'`import torch` and a forward of bare functions':bare, '`Predictor.load` and an answer':ours}
    times = in_turn({k: partial(run, '-c', o, file, fn) for k,o in ways.items()}, turns)
    return [['from the start of the process', 'seconds', 'ratio'], *([k, f'{v:.2f}', f'{v/list(times.values())[0]:.2f}'] for k,v in times.items())]

def rates(file, name, size, fns, turns):
    "Pictures a second, the sides in turn, as calls and as whole processes"
    from scratchai.all import Predictor
    ask = Predictor.load(file)
    learn = fastai_learner(ask.model, size, fns)
    def theirs():
        with learn.no_bar(), learn.no_logging(): return learn.get_preds(dl=learn.dls.test_dl(list(fns), num_workers=2))[0]
    def same(): return [o for _,o in ask.each(fns, 2)]
    learn.export(pkl := file.with_name('fastai.pkl'))
    res = []
    for ways in ({"fastai's `get_preds`":theirs, '`Predictor.each`':same},
        {"fastai's `load_learner` and `get_preds`, whole process":partial(run, '-c', script, pkl, *fns), '`scratchai-predict`, whole process':partial(run, '-m', 'scratchai.predict', file, *fns)}):
        secs = in_turn(ways, turns)
        res += [[name, size, k, f'{len(fns)/v:.0f}', f'{list(secs.values())[0]/v:.2f} ×'] for k,v in secs.items()]
    return res

def main(path, turns='5'):
    from scratchai.all import get_image_files,resnet18,simple_cnn
    fns,turns = get_image_files(path),int(turns)
    with tempfile.TemporaryDirectory() as tmp:
        files = {(net,size): exported(net, size, fns, Path(tmp)) for net,size in ((resnet18,128),(resnet18,64),(simple_cnn,64))}
        start = first_answer(files[resnet18,128], fns[0], 2*turns+1)
        rows = [r for (net,size),f in files.items() if size==64 for r in rates(f, net.__name__, size, fns, turns)]
    report.write(f'Predictions on {path.name}', f'The first answer of resnet18 for a picture at 128 pixels: medians of {2*turns+1} processes each, in turn.\n\n{report.table(start)}\n\n'
        f'All {len(fns)} pictures, read, resized and classified, in batches of 64, with two processes to decode, by the same network with the same weights; medians of {turns} turns. '
        'A whole process also starts, loads the model and writes a line for each picture.\n\n'
        + report.table([['network', 'size', 'way', 'pictures/s', "times fastai's"], *rows]))

if __name__=='__main__': main(Path(sys.argv[1]), *sys.argv[2:])
