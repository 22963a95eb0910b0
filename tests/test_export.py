"A model's file: the same predictions anywhere, and a sentence for what is no such file"
import gc,io,json,os,pickle,random,re,resource,subprocess,sys,zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt,numpy as np,pytest,torch,torch.nn.functional as F
from PIL import Image
from fastcore.all import L
from safetensors.torch import load_file,save_file

from scratchai.core import *
from scratchai.data import *
from scratchai.block import *
from scratchai.crops import *
from scratchai.augment import *
from scratchai.layers import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.resnet import *
from scratchai.transfer import *
from scratchai.learner import *
from scratchai.recorder import *
from scratchai.precision import *
from scratchai.transform import *
from scratchai.inference import *
from scratchai.mixup import *
from scratchai.export import *

@register
def own_net(n_out, width=4, pretrained=True):
    assert not pretrained, 'weights come from the file'
    return Sequential(Conv2d(3, width, 3), AdaptivePool(), Flatten(), Linear(width, n_out))

@register
class OwnNet(Module):
    def __init__(self, n_out, *, width=4): self.conv,self.lin = Conv2d(3, width, 3),Linear(width, n_out)
    def forward(self, x): return self.lin(self.conv(x).mean((2,3)))

@register
def darker(o:TensorImage): return o*.5

@register
def upper_label(o): return parent_label(o).upper()

@pytest.fixture
def fns(pictures): return L(sorted(get_image_files(pictures(cat=5, dog=5))))

def dls_of(fns, block=CategoryBlock, get_y=parent_label, item=None, batch=None, **kwargs):
    b = DataBlock((ImageBlock,block), get_y=get_y, item_tfms=item or Resize(8), batch_tfms=batch,
        splitter=lambda o: (list(range(3, len(o))), list(range(3))))
    return b.dataloaders(fns, bs=4, num_workers=0, device='cpu', **kwargs)

@pytest.fixture
def learn(fns, tmp_path): return Learner(dls_of(fns), simple_cnn(2), metrics=accuracy, path=tmp_path)

def same(learn, fns, **kwargs):
    "Export, load, and compare"
    new = load_learner(learn.export(), **kwargs)
    a,b = [o.get_preds(dl=o.dls.test_dl(list(fns)))[0] for o in (learn,new)]
    assert torch.equal(a, b)
    x,y = learn.predict(fns[0]),new.predict(fns[0])
    assert str(x[0])==str(y[0]) and torch.equal(x[2], y[2]) and type(x[0])==type(y[0])
    return new

@pytest.mark.parametrize('make', [lambda: resnet18(n_out=2), lambda: xresnet18(n_out=2, p=.1),
    lambda: own_net(2, width=3, pretrained=False), lambda: OwnNet(2, width=3)])
def test_architectures(learn, fns, make):
    "By name with their arguments, those of a user too; without pretrained weights"
    learn.model = make()
    state = torch.get_rng_state()
    same(learn, fns)
    assert torch.equal(torch.get_rng_state(), state)

@pytest.mark.parametrize('item,batch', [(Resize((8,12), method='squish'), None), (Resize(8, method='pad', pad_mode='zeros'), Normalize()),
    ([RandomResizedCrop(8, min_scale=.5), FlipItem()], Normalize.from_stats(*imagenet_stats)), (Resize(8), aug_transforms(size=6)),
    (CropPad(9), darker)])
def test_transforms(fns, tmp_path, item, batch):
    "With their numbers, measured ones too; and functions that are registered"
    learn = Learner(dls_of(fns, item=item, batch=batch), simple_cnn(2), path=tmp_path)
    new = same(learn, fns)
    assert new.dls.after_batch.fs.map(str)==learn.dls.after_batch.fs.map(str) and new.dls.valid.after_item.fs.map(str)==learn.dls.valid.after_item.fs.map(str)

def test_kinds_of_targets(fns, tmp_path):
    class Const(Module):
        def __init__(self, *out): self.out,self.w = torch.tensor(out),Parameter(torch.zeros(1))
        def forward(self, x): return self.out.expand(len(x), *self.out.shape)+self.w
    for block,y,out in ((MultiCategoryBlock, lambda o: [parent_label(o),'pet'], (-9.,9.,9.)), (PointBlock, lambda o: [[1.,2.]], (0.,.5)),
            (RegressionBlock, lambda o: .5, (.25,)), (CategoryBlock(vocab=['dog','cat'], sort=False, add_na=True), parent_label, (1.,0.,2.))):
        learn = Learner(dls_of(fns, block, y, Resize(8, method='squish')), Const(*out), path=tmp_path)
        new = same(learn, fns, model=Const(*out))
        assert str(new.loss_func)==str(learn.loss_func) and getattr(new.dls, 'c', 0)==getattr(learn.dls, 'c', 0)
    Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(tmp_path/'mask.png')
    learn = Learner(dls_of(fns, MaskBlock(['a','b']), lambda o: tmp_path/'mask.png'), Conv2d(3, 2, 1), path=tmp_path)
    new = same(learn, fns, model=Conv2d(3, 2, 1))
    assert new.dls.vocab==['a','b']

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(weight=torch.tensor([1.,2.]), label_smoothing=.1), LabelSmoothingCrossEntropy(.2),
    FocalLossFlat(gamma=1.), BCEWithLogitsLossFlat(thresh=.3), BCELossFlat(), MSELossFlat(), L1LossFlat(reduction='sum'), DiceLoss(smooth=2.),
    cross_entropy, F.mse_loss, partial(cross_entropy, label_smoothing=.1)])
def test_losses(loss):
    "The same numbers, the same activation, the same decisions"
    new,x = restore(json.loads(json.dumps(describe(loss)))),torch.rand(4,2)
    y = torch.rand(4,2) if any(o in str(loss).lower() for o in ('bce','mse','l1')) else torch.tensor([0,1,1,0])
    if isinstance(loss, DiceLoss): x,y = torch.rand(4,2,3),torch.randint(2, (4,3))
    assert torch.equal(loss(x, y), new(x, y))
    for f in (loss_activation,loss_decodes): assert torch.equal(f(loss)(x), f(new)(x))

@pytest.mark.parametrize('loss', [F.cross_entropy, torch.nn.CrossEntropyLoss(), torch.nn.BCEWithLogitsLoss(), torch.nn.MSELoss()])
def test_losses_of_torch(learn, fns, loss):
    learn.loss_func = loss
    new = load_learner(learn.export())
    assert isinstance(new.loss_func, BaseLoss)
    assert torch.equal(*[o.get_preds(dl=o.dls.test_dl(list(fns)))[0] for o in (learn,new)])

def test_what_is_not_registered(learn, fns, tmp_path, capsys):
    "A sentence when it is exported, or, for a label function and a model, when it is missed"
    learn.loss_func = lambda p,y: p.sum()
    with pytest.raises(TypeError, match='<lambda> is not registered'): learn.export()
    learn = Learner(dls_of(fns, batch=lambda b: b), simple_cnn(2), path=tmp_path)
    with pytest.raises(TypeError, match='<lambda> is not registered'): learn.export()
    learn = Learner(dls_of(fns, get_y=lambda o: o.parent.name), Sequential(Flatten(), Linear(192, 2)), path=tmp_path)
    file = learn.export()
    assert 'will need `model=`' in capsys.readouterr().out
    with pytest.raises(ValueError, match='export.pkl cannot be used.*give `model=`'): load_learner(file)
    with pytest.raises(ValueError, match=r"1.weight \(saved \(2, 192\), here \(3, 192\)\)"):
        load_learner(file, model=Sequential(Flatten(), Linear(192, 3)))
    new = same(learn, fns, model=Sequential(Flatten(), Linear(192, 2)))
    with pytest.raises(RuntimeError, match='exported without its function `<lambda>`'):
        new.get_preds(dl=new.dls.test_dl(list(fns), with_labels=True))
    learn.model = simple_cnn(2)
    setattr(learn.model, '6', Linear(128, 3))
    file = learn.export()
    assert 'will need `model=` for this Sequential: a part of it was replaced' in capsys.readouterr().out
    with pytest.raises(ValueError, match='give `model=`'): load_learner(file)

def test_labels(fns, tmp_path, pictures):
    "By folder, by a pattern, and by a registered function"
    path = pictures(train_cat=4, train_dog=4, valid_cat=2, valid_dog=2)
    new = load_learner(Learner(ImageDataLoaders.from_folder(path, item_tfms=Resize(8), num_workers=0, device='cpu'), simple_cnn(2), path=tmp_path).export())
    dl = new.dls.test_dl(list(fns), with_labels=True)
    preds,targs = new.get_preds(dl=dl)
    assert [new.dls.vocab[i] for i in targs.tolist()]==fns.map(parent_label)
    new.show_results(dl=dl)
    assert str(path) not in json.dumps(read_model(tmp_path/'export.pkl')[0]), 'no path of this machine'
    dls = ImageDataLoaders.from_path_re(path, fns, r'/(cat|dog)/', item_tfms=Resize(8), num_workers=0, device='cpu')
    new = load_learner(Learner(dls, simple_cnn(2), path=tmp_path).export())
    assert new.get_preds(dl=new.dls.test_dl(list(fns), with_labels=True))[1].tolist()==targs.tolist()
    dls = ImageDataLoaders.from_name_func(path, fns, lambda o: o[0], item_tfms=Resize(8), num_workers=0, device='cpu')
    new = load_learner(Learner(dls, simple_cnn(dls.c), path=tmp_path).export())
    assert new.predict(fns[0])[0] in new.dls.vocab
    with pytest.raises(LoaderError, match='exported without its function `'):
        new.get_preds(dl=new.dls.test_dl(list(fns), with_labels=True))
    learn = Learner(dls_of(fns, get_y=upper_label), simple_cnn(2), path=tmp_path)
    new = load_learner(learn.export())
    assert new.get_preds(dl=new.dls.test_dl(list(fns), with_labels=True))[1].tolist()==targs.tolist() and new.dls.vocab==['CAT','DOG']

def test_hand_made_loaders(pictures, tmp_path):
    for method in ('squish','crop','pad'):
        dls = folder_dls(pictures(train_cat=4, train_dog=4, val_cat=2, val_dog=2), size=(8,11), bs=4, n_workers=0, device='cpu')
        for o in dls: o.ds.method = method
        learn = Learner(dls, simple_cnn(2), path=tmp_path)
        fn = dls.valid_ds.fns[0]
        a,b = learn.predict(fn),load_learner(learn.export()).predict(fn)
        assert a[0]==b[0] and torch.equal(a[2], b[2])

def test_arguments(learn, fns, tmp_path):
    "The file's name, the device, other loaders"
    assert learn.export().name=='export.pkl' and learn.export('sub/m.safetensors')==tmp_path/'sub/m.safetensors'
    new = load_learner(tmp_path/'sub/m.safetensors')
    assert new.path==tmp_path/'sub' and str(new.dls.device)=='cpu' and not any(m.training for m in new.model.modules())
    assert load_learner(str(tmp_path/'export.pkl'), cpu=False).dls.device==default_device()
    new = load_learner(tmp_path/'export.pkl', dls=learn.dls)
    assert new.dls is learn.dls and torch.equal(new.get_preds()[0], learn.get_preds()[0])
    learn.dls = DataLoaders([], [], device='cpu')
    with pytest.raises(TypeError, match='cannot take other items'): load_learner(learn.export()).predict(fns[0])

def test_16_bits(learn, fns):
    "A learner in mixed precision, and a model of 64 bits, predict the same"
    learn.dls = dls_of(fns, item=Resize(32)) # on pictures so small that a convolution sees a border only, bfloat16 fails on a CPU
    learn.to_bf16()
    with learn.no_logging(): learn.fit(1, 1e-3)
    new = load_learner(learn.export())
    assert torch.allclose(new.predict(fns[0])[2], learn.predict(fns[0])[2], atol=.02)
    learn.to_fp32().model.to(torch.float64)
    assert first_dtype(load_learner(learn.export()))==torch.float64

def first_dtype(learn): return next(iter(learn.model.parameters())).dtype

@pytest.mark.slow
def test_a_fresh_process(fns, tmp_path, pictures):
    "Several networks and transforms, without the data, in another folder: the same to the last bit"
    norm = Normalize.from_stats(*imagenet_stats)
    hand = folder_dls(pictures(train_cat=4, train_dog=4, val_cat=2, val_dog=2), size=(24,31), bs=4, n_workers=0, device='cpu')
    learns = [Learner(dls_of(fns), simple_cnn(2)), Learner(dls_of(fns, item=Resize(32), batch=norm), resnet18(n_out=2)),
        Learner(dls_of(fns, item=Resize((32,48), method='pad'), batch=[*aug_transforms(size=24), norm]), xresnet18(n_out=2, p=.5)),
        Learner(dls_of(fns, item=RandomResizedCrop(40, min_scale=.5), batch=Normalize()), xse_resnext18(n_out=2)),
        vision_learner(dls_of(fns, item=Resize(32)), resnet18, pretrained=False), Learner(hand, simple_cnn(2))]
    want = []
    for i,learn in enumerate(learns):
        learn.path = tmp_path
        with learn.no_logging(), learn.no_bar(): learn.fit(1, 1e-3)
        learn.export(f'{i}.pkl')
        want.append([learn.predict(f)[2].tolist() for f in fns[:3]])
    code = f"""if True:
        from scratchai.export import load_learner
        learns = [load_learner(f'{tmp_path}/{{i}}.pkl') for i in range({len(learns)})]
        print([[o.predict(f)[2].tolist() for f in {list(map(str, fns[:3]))}] for o in learns])"""
    out = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert out.stdout and json.loads(out.stdout)==want, out.stderr

def test_what_a_loaded_learner_can(learn, fns, capsys):
    "`test_dl`, `tta`, `validate` and `show_results` work as before; without items there is a sentence"
    with learn.no_logging(): learn.fit(1, 1e-3)
    new = load_learner(learn.export())
    for labels in (True,False):
        a,b = [o.dls.test_dl(list(fns), with_labels=labels) for o in (learn,new)]
        assert torch.equal(learn.get_preds(dl=a)[0], new.get_preds(dl=b)[0])
        p,q = [o.tta(dl=dl, n=2)[0] for o,dl in ((learn,a),(new,b))]
        assert torch.equal(p, q)
        new.show_results(dl=b, max_n=3)
        assert sum(bool(o.images) for o in plt.gcf().axes)==3
    with learn.no_bar(): assert learn.validate(dl=learn.dls.test_dl(list(fns), with_labels=True))[0]==new.validate(dl=new.dls.test_dl(list(fns), with_labels=True))[0]
    for f in (new.get_preds, new.show_results, new.tta, new.pred_batch):
        with pytest.raises(ValueError, match='no batches.*test_dl'): f()
    again = load_learner(new.export('again.pkl'))
    assert torch.equal(again.predict(fns[0])[2], learn.predict(fns[0])[2])

class Bomb:
    def __reduce__(self): return os.system, ('touch scratchai-bomb',)

def header(text, n=None): return (len(text) if n is None else n).to_bytes(8, 'little')+text

def with_manifest(file, edit, **tensors):
    "The file again, with its manifest changed by `edit`"
    spec = read_model(file)[0]
    spec = edit(spec) or spec
    sd = {**load_file(file), **tensors}
    save_file(sd, file.with_name('edited'), metadata=dict(scratchai=spec if isinstance(spec, str) else json.dumps(spec)))
    return file.with_name('edited')

def test_files_that_are_none(learn, tmp_path):
    "Each a sentence with the file's name; none runs anything"
    file,out = learn.export(),tmp_path/'x.pkl'
    good = file.read_bytes()
    def check(data, match):
        out.write_bytes(data)
        with pytest.raises(ValueError, match=f'x.pkl.*{match}'): load_learner(out)
    for p in range(6): check(pickle.dumps(Bomb(), p), 'is a pickle|does not begin')
    with zipfile.ZipFile(out, 'w') as z: z.writestr('a/data.pkl', pickle.dumps(Bomb()))
    check(out.read_bytes(), 'is a pickle')
    torch.save(dict(a=1), out)
    check(out.read_bytes(), 'is a pickle')
    assert not os.path.exists('scratchai-bomb')
    for data in (b'', b'abc', b'\0'*100, b'hello '*100): check(data, 'does not begin')
    for n in (20, 500, len(good)//2, len(good)-1): check(good[:n], 'cut short|damaged')
    check(header(b'{}', 2**20), 'cut short')
    check(header(b'{', 2**63), 'header of 9223372036854775808 bytes')
    out.write_bytes(header(b'{', 2**30))
    os.truncate(out, 2**30+100)
    with pytest.raises(ValueError, match='header of 1073741824 bytes'): load_learner(out)
    check(header(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'), 'damaged')
    check(header(b'{"__metadata__":'+b'['*100000), 'damaged')
    save_file({'../../a':torch.zeros(1)}, out)
    with pytest.raises(ValueError, match='has weights only'): load_learner(out)
    with pytest.raises(FileNotFoundError): load_learner(tmp_path/'nope.pkl')

def test_manifests(learn, tmp_path):
    "A newer format, unknown names, a wrong shape, what is damaged"
    file = learn.export()
    def check(edit, match, **tensors):
        with pytest.raises(ValueError, match=f'edited.*{match}'): load_learner(with_manifest(file, edit, **tensors))
    check(lambda s: s.update(format=2), 'has the format 2, and scratchai .* reads 1: update')
    check(lambda s: s.update(format='1'), 'parts are missing')
    check(lambda s: s.pop('arch') and None, 'parts are missing')
    check(lambda s: s['arch'].update(of='vit_huge'), "asks for 'vit_huge', which is not registered here.*`model=`")
    check(lambda s: s['arch'].update(of=['a']), 'not registered')
    check(lambda s: s['arch'].update(kind='exec'), 'no description')
    check(lambda s: s['arch'].update(kw=dict(kind='dict', of=[['n_out',10**12]])), '1000000000000 is too large')
    check(lambda s: s['arch'].update(kw=dict(kind='dict', of=[['n_out',10**6]])), r'6.weight \(saved \(2, 128\), here \(1000000, 128\)\)')
    check(lambda s: s['arch'].update(kw=dict(kind='dict', of=[['size',5]])), 'unexpected keyword')
    check(lambda s: s['arch'].update(kw=dict(kind='dict', of=[['n_out','x'*20000]])), 'too many arguments')
    check(lambda s: None, 'Unexpected: extra', extra=torch.zeros(3))
    check(lambda s: s['loss'].update(of='system'), "asks for 'system'")
    check(lambda s: s.update(loss=dict(kind='create', of='cross_entropy')), 'create')
    check(lambda s: s['data'].update(item=3), '.')
    check(lambda s: json.dumps(s)[:-5], 'damaged')
    check(lambda s: '{"format":1,"format":1}', 'a name twice')
    check(lambda s: '['*100000, 'damaged')
    check(lambda s: '[1]', 'weights only')

def hostile(good, bad_picture):
    "Names and bytes of files that mean harm, or are broken: with bytes changed, cut short, and made by hand"
    rng,n = random.Random(1),int.from_bytes(good[:8], 'little')
    head = json.loads(good[8:8+n])
    spec = json.loads(head['__metadata__']['scratchai'])
    def whole(spec=spec, head=head, body=good[8+n:]):
        text = spec if isinstance(spec, str) else json.dumps(spec)
        return header(json.dumps({**head, '__metadata__':dict(scratchai=text)}).encode())+body
    assert whole()[8:]==whole(json.dumps(spec))[8:]
    for i in range(400): # in the header, where the manifest is
        data = bytearray(good)
        for _ in range(rng.choice([1,1,3,20])): data[rng.randrange(n+8)] = rng.randrange(256)
        yield f'changed {i}',data
    for i in range(40): # anywhere
        data = bytearray(good)
        data[rng.randrange(len(good))] ^= 1<<rng.randrange(8)
        yield f'bit {i}',data
    for i in [*range(12), *range(12, n, n//60), n+7, n+8, n+9, *range(n+20, len(good), len(good)//20), len(good)-1]: yield f'cut at {i}',good[:i]
    for i in range(64): yield f'length 2**{i}',header(good[8:], 2**i)
    for p in range(6):
        bomb = pickle.dumps(Bomb(), p)
        yield from {f'pickle {p}':bomb, f'pickle {p} behind a length':header(bomb), f'pickle {p} as text':header(b'{'+bomb), f'pickle {p} behind':good+bomb}.items()
    for name,make in dict(zip=lambda f: zipfile.ZipFile(f, 'w').writestr('a/data.pkl', pickle.dumps(Bomb())), torch=lambda f: torch.save(Bomb(), f),
        old_torch=lambda f: torch.save(Bomb(), f, _use_new_zipfile_serialization=False), numpy=lambda f: np.save(f, np.array([Bomb()]), allow_pickle=True)).items():
        make(f := io.BytesIO())
        yield name,f.getvalue()
    first = next(k for k in head if k!='__metadata__')
    for name in ['../../a', '/etc/passwd', 'C:\\\\a', 'a\0b', '__class__', '__init__', 'forward', '', '.', '0', '0.0', '0.weight.data', '\ud800', 'a'*10**6, '0.'*10**4]:
        yield f'name {name[:9]!r}',whole(head={**{k:v for k,v in head.items() if k!=first}, name:head[first]})
        yield f'one more {name[:9]!r}',whole(head={**head, name:dict(dtype='F32', shape=[0], data_offsets=[0,0])})
    for k,vals in dict(dtype=['F16','BF16','I32','U32','F8_E4M3','F64','BOOL','X',None,3,''], shape=[[],[0],[-1],[2**31,2**31,4],[2**62,4],[2**64],[1.5],['a'],None,[[1]],[1]*10**5],
            data_offsets=[[0,0],[4,0],[0,2**63],[0,2**64],[-4,0],[0],None,'a',[0,4,8],[1,5]]).items():
        for v in vals: yield f'{k} {str(v)[:20]}',whole(head={**head, first:{**head[first], k:v}})
    big = 10**12
    yield 'a terabyte',whole(head={**head, first:dict(dtype='F32', shape=[big], data_offsets=[0,4*big])})
    yield 'names twice',header(good[8:8+n][:-1]+b','+good[9:8+n])+good[8+n:]
    yield 'metadata twice',header(b'{"__metadata__":{"scratchai":"1"},'+good[9:8+n])+good[8+n:]
    yield 'manifest twice',header(good[8:8+n].replace(b'"__metadata__":{', b'"__metadata__":{"scratchai":"1",'))+good[8+n:]
    for k in spec: yield f'{k} twice',whole(json.dumps(spec)[:-1]+f',"{k}":1}}')
    for d in (10,100,1000,10**4,10**5,10**6):
        for a,b in ('[',']'),('{"a":','}'),('{"kind":"tuple","of":','}'),('{"kind":"L","of":[','],"x":1}'):
            nest = a*d+'1'+b*d
            yield f'header {a[:9]} {d} deep',header(b'{"a":'+nest.encode()+b'}')
            yield f'manifest {a[:9]} {d} deep',whole(nest)
            for k in ('arch','loss','data'): yield f'{k} {a[:9]} {d} deep',whole(json.dumps({**spec, k:0}).replace(f'"{k}": 0', f'"{k}": {nest}'))
    m = 2**17
    for name,text in dict(lists='[],', dicts='{},', numbers='1.5,', texts='"a",', nulls='null,', kinds='{"kind":"L","of":[]},').items():
        nest = f"[{(text*(m//len(text)))[:-1]}]"
        for k in ('arch','loss'): yield f'{k} of many {name}',whole(json.dumps({**spec, k:0}).replace(f'"{k}": 0', f'"{k}": {nest}'))
        yield f'a tensor of many {name}',whole(json.dumps({**spec, 'loss':0}).replace('"loss": 0', f'"loss": {{"kind":"tensor","dtype":"float64","of":{nest}}}'))
    yield 'as many lists as fit',whole(json.dumps({**spec, 'loss':0}).replace('"loss": 0', '"loss": {"kind":"L","of":['+'[],'*1300000+'[]]}'))
    yield 'more lists',whole(json.dumps({**spec, 'loss':0}).replace('"loss": 0', '"loss": {"kind":"L","of":['+'[],'*1400000+'[]]}'))
    yield 'a long number',whole('1'*10**6)
    def made(of, kw={}, **kwargs): return dict(kind='made', of=of, kw=dict(kind='dict', of=[[k,v] for k,v in {**kw, **kwargs}.items()]))
    def part(of, *args, **kw): return dict(kind='partial', of=dict(kind='name', of=of), on=dict(kind='tuple', of=[dict(kind='tuple', of=list(args)), dict(kind='dict', of=[[k,v] for k,v in kw.items()])]))
    for k in registry: yield from () if re.search('34|50|101|152', k) else [(f'model {k}', whole({**spec, 'arch':made(k)}))]
    for kw in [dict(src=str(bad_picture)), dict(src='/dev/zero'), dict(src='/dev/stdin')]: yield f'open {kw}',whole({**spec, 'arch':made('open_image', kw)})
    for f in (part('resnet18', True), part('resnet18', pretrained=str(bad_picture)), part('resnet18', weights='DEFAULT'), part('open_image', str(bad_picture)), part('create_vision_model')):
        for k in ('arch','init','custom_head','cut'): yield f'{k} {str(f)[:40]}',whole({**spec, 'arch':made('create_vision_model', {'n_out':2, 'arch':dict(kind='name', of='resnet18'), k:f})})
    yield 'many models',whole({**spec, 'arch':made('simple_cnn', {str(i):made('resnet152') for i in range(150)})})
    inner = dict(kind='name', of='resnet18')
    for _ in range(60): inner = made('create_vision_model', arch=inner, n_out=2)
    yield 'models in models',whole({**spec, 'arch':inner})
    for k in 'n_out num_classes ndim ks stride widen expansion stem_szs groups reduction p c_in layers act_cls sa pool norm_type dw g1 g2 nh1'.split():
        for v in (-1, 10**6, 1e300, [10**6]*9): yield f'{k} {str(v)[:9]}',whole({**spec, 'arch':made('xresnet18', {k:v})})
    for n_out in (10**9, 10**18, 10**30, -5): yield f'outputs {n_out}',whole({**spec, 'arch':made('simple_cnn', n_out=n_out)})
    def leaves(o, at=()):
        yield at
        for k,v in o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else (): yield from leaves(v, (*at, k))
    odd = [None, 10**12, [], {}, dict(kind='name', of='system')]
    for at in leaves(spec):
        for v in odd:
            new = json.loads(json.dumps(spec))
            if not at: new = v
            else:
                o = new
                for k in at[:-1]: o = o[k]
                o[at[-1]] = v
            yield f'{at} is {str(v)[:30]}',whole(new)

def open_hostile(folder, file):
    "Open them all, and print what happened; run in a process of its own"
    folder = Path(folder)
    os.chdir(folder)
    sys.stdin.close()
    bad,out = folder/'huge.png',folder/'x.pkl'
    Image.new('L', (9000,9000)).save(bad)
    said,opened,odd = 0,0,[]
    def kb(k): return int(Path('/proc/self/status').read_text().split(f'{k}:')[1].split()[0])
    room = kb('VmSize')*1024+2**30
    resource.setrlimit(resource.RLIMIT_AS, (room,room))
    for name,data in hostile(Path(file).read_bytes(), bad):
        out.write_bytes(data)
        if len(data)>2**20: gc.disable() # as in a process that has made little else
        try:
            load_learner(out)
            opened += 1
        except ValueError as e:
            said += 1
            if 'x.pkl' not in str(e) or len(str(e))>2000 or 'MemoryError' in str(e): odd.append((name, str(e)[:300]))
        except BaseException as e: odd.append((name, f'{type(e).__name__}: {e}'[:300]))
        gc.enable()
    print(json.dumps(dict(said=said, opened=opened, odd=odd, mb=kb('VmHWM')/1024, files=sorted(os.listdir(folder)))))

@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='memory is measured as Linux tells it')
def test_a_thousand_files(learn, tmp_path):
    "Each opens or ends in a sentence; none runs anything, takes a gigabyte, or ends the process"
    (place := tmp_path/'place').mkdir()
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_export; test_export.open_hostile({str(place)!r}, {str(learn.export())!r})'
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.returncode==0, res.stderr[-2000:]
    got = json.loads(res.stdout.splitlines()[-1])
    assert got['odd']==[] and got['said']>1000 and got['opened']>20 and got['mb']<1000 and got['files']==['huge.png','x.pkl'], got

def test_a_kill_leaves_the_old_file(learn, monkeypatch):
    file = learn.export()
    old = file.read_bytes()
    def stop(*args): raise OSError('disk full')
    monkeypatch.setattr(os, 'replace', stop)
    with pytest.raises(OSError, match='disk full'): learn.export()
    assert file.read_bytes()==old and [o.name for o in file.parent.glob('.*')]==[]

def test_describe():
    "What comes back is what went in"
    vals = [None, True, 3, 2.5, 'a', [1,[2]], (1,'b'), L(1,2), {'a':(1,), 2:None}, np.float32(1.5), float('inf'), resnet18, CategoryMap(['b','a'], add_na=True)]
    for v in vals:
        res = restore(json.loads(json.dumps(describe(v))))
        assert res==v and (type(res)==type(v) or isinstance(v, np.generic))
    assert restore(describe(CategoryMap(['b','a'], add_na=True))).o2i=={'#na#':0, 'a':1, 'b':2}
    t = torch.tensor([[.1,1e-9]])
    assert torch.equal(restore(describe(t)), t) and restore(describe(t.long())).dtype==torch.int64
    class Unknown: pass
    with pytest.raises(TypeError, match='is not registered'): describe([Unknown()])
    made = describe(simple_cnn(3))
    for o in ({'a':1}, made):
        with pytest.raises(ValueError, match='is no description'): restore(o)
    assert restore(made, models=True)(torch.rand(1,3,32,32)).shape==(1,3)
    assert str(NoLabels('f'))=='NoLabels'

def test_describe_dls(learn, fns):
    "The transforms without the items; loaders of another kind have none"
    spec = describe_dls(learn.dls)
    new = restore_dls(spec, path='here', device='cpu')
    assert new.vocab==learn.dls.vocab and new.bs==4 and str(new.path)=='here' and len(new.train_ds)==0
    assert describe_dls(new)==spec
    assert describe_dls(DataLoaders([], [], device='cpu')) is None

def test_predictor(learn, fns, pictures, tmp_path, capsys):
    "One item and several, from several threads at a time, without a word"
    want = [learn.predict(f) for f in fns]
    p = Predictor.load(learn.export())
    capsys.readouterr()
    def check(got): assert [o[0] for o in got]==[o[0] for o in want] and all(torch.allclose(a[2], b[2], atol=1e-6) for a,b in zip(got, want))
    check(p.batch(list(fns)))
    check(p.batch([f.read_bytes() for f in fns]))
    assert torch.equal(p.predict(fns[0])[2], want[0][2]) and not p.predict(fns[0])[2].requires_grad
    with ThreadPoolExecutor(4) as ex: check([o.result() for o in [ex.submit(p.predict, f) for f in fns]])
    assert capsys.readouterr()==('','')
    with pytest.raises(LoaderError, match='no picture that can be read'): p.predict(b'abc')
    dls = folder_dls(pictures(train_cat=4, train_dog=4, val_cat=2, val_dog=2), size=8, bs=4, n_workers=0, device='cpu')
    hand = Learner(dls, simple_cnn(2), path=tmp_path)
    a,b = hand.predict(fns[0]),Predictor.load(hand.export(), cpu=True).predict(fns[0])
    assert a[0]==b[0] and torch.equal(a[2], b[2])
    net = Sequential(Flatten(), Linear(192, 2))
    file = Learner(learn.dls, net, path=tmp_path).export()
    assert Predictor.load(file, model=Sequential(Flatten(), Linear(192, 2))).predict(fns[0])[1] in (0,1)
    class Several(Module):
        def __init__(self): self.w = Parameter(torch.zeros(1))
        def forward(self, x): return tensor([-9.,9.,9.]).expand(len(x), 3)+self.w
    several = Learner(dls_of(fns, MultiCategoryBlock, lambda o: [parent_label(o),'pet']), Several(), path=tmp_path)
    assert Predictor.load(several.export(), model=Several()).predict(fns[0])[0]==['dog','pet']

def test_transfer(fns, tmp_path):
    "A body with a head is named with its arguments"
    learn = vision_learner(dls_of(fns, item=Resize(32)), resnet18, pretrained=False, ps=.1, path=tmp_path)
    same(learn, fns)
