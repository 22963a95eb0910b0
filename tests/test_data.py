"From bytes to normalised batches, and what training and validation share"
import copy,os,pickle,sys
from pathlib import Path

import matplotlib.pyplot as plt,numpy as np,pytest,torch
from PIL import Image
from fastcore.all import L,noop
from torch import Tensor
from scratchai import data
from scratchai.core import default_device
from scratchai.data import *

@pytest.fixture
def fns(pictures):
    "8 pictures of two classes"
    return get_image_files(pictures(dog=4, cat=4))

def loader(fns, bs=4, **kwargs): return DataLoader(Dataset(fns), bs=bs, n_workers=0, seed=0, **kwargs)
def by_hand(fns, device='cpu', **kwargs):
    return DataLoaders(loader(fns, shuffle=True, **kwargs), loader(fns, **kwargs), batch_tfms=[ToFloat(), Normalize(*imagenet_stats)], device=device)

class Kept(Tensor):
    "A tensor whose class arithmetic forgets, as chapter 11 has it"
    __torch_function__ = torch._C._disabled_torch_function_impl
    def __getitem__(self, i): return super().__getitem__(i).as_subclass(type(self))
class Other(Kept): pass
def kept(*shape, cls=Kept): return torch.rand(shape).as_subclass(cls)

# transforms
def test_to_float():
    b = torch.randint(256, (2,4,5,3), dtype=torch.uint8)
    x,y,z = ToFloat()((b,1,2))
    assert torch.equal(x, b.permute(0,3,1,2)/255) and (y,z)==(1,2) and x.is_contiguous(memory_format=torch.channels_last)
    assert ToFloat.order<Normalize.order

@pytest.mark.parametrize('shape', ((2,3,4,5),(3,4,5)))
def test_normalize(shape):
    x,norm = torch.rand(shape),Normalize.from_stats(*imagenet_stats)
    mean,std = (torch.tensor(o).view(3,1,1) for o in imagenet_stats)
    assert torch.equal(norm.encode(x), (x-mean)/std) and torch.allclose(norm.decode(norm.encode(x)), x, atol=1e-6)
    assert torch.equal(norm(x), norm.encode(x)) and repr(norm)==f'Normalize({imagenet_stats[0]}, {imagenet_stats[1]})'

def test_where_the_channels_are_and_the_numbers(monkeypatch):
    x,(mean,std) = torch.rand(2,4,5,3),map(torch.tensor, imagenet_stats)
    norm = Normalize.from_stats(*imagenet_stats, dim=3)
    assert torch.allclose(norm.encode(x), (x-mean)/std) and torch.allclose(norm.decode(norm.encode(x)), x, atol=1e-6)
    rows = torch.rand(7,3)
    assert torch.allclose(Normalize.from_stats(*imagenet_stats, dim=1, ndim=2).encode(rows), (rows-mean)/std)
    assert torch.allclose(Normalize.from_stats(*imagenet_stats, dim=0, ndim=3).encode(x[0].permute(2,0,1)), ((x[0]-mean)/std).permute(2,0,1))
    monkeypatch.setattr(data, 'default_device', lambda use=-1: torch.device('meta' if use==-1 else 'cpu'))
    assert [Normalize.from_stats(*imagenet_stats, cuda=o).mean.device.type for o in (True,False)]==['meta','cpu']

def test_grey_pictures_and_three_numbers():
    with pytest.raises(ValueError, match=r'Normalize\(\[0.485, .* does not fit pictures of shape \(2, 1, 4, 4\)'): Normalize(*imagenet_stats)(torch.rand(2,1,4,4))

def test_which_parts_of_a_batch_are_normalised():
    norm,x,y = Normalize(*imagenet_stats),torch.rand(2,3,4,4),torch.rand(2,3,4,4)
    a,b,c = norm((x,y,1))
    assert torch.equal(a, norm.encode(x)) and b is y and c==1 # plain tensors: the first
    (a,b),c = norm(((x,y),y))
    assert torch.equal(a, norm.encode(x)) and torch.equal(b, norm.encode(y)) and c is y
    p,q,r = kept(2,3,4,4),kept(2,3,4,4),kept(2,3,4,4, cls=Other)
    a,b,c,d = res = norm((p,q,r,y))
    assert [type(o) for o in res]==[Kept,Kept,Other,Tensor] and torch.equal(b, norm.encode(q)) and c is r and d is y
    back = norm.decode(res)
    assert torch.allclose(back[0], p, atol=1e-6) and torch.allclose(back[1], q, atol=1e-6) and back[2] is r and type(back[0]) is Kept
    (a,b),c = norm(((p,q),y))
    assert torch.equal(a, norm.encode(p)) and torch.equal(b, norm.encode(q)) and c is y

def test_normalize_measures(fns):
    norm,dl = Normalize(),loader(fns, bs=8, after_batch=ToFloat())
    assert repr(norm)=='Normalize()'
    with pytest.raises(ValueError, match=r'has no mean yet: call `setup\(dl\)`'): norm(dl.one_batch())
    norm.setup(dl)
    x, = norm(dl.one_batch()[:1])
    assert torch.allclose(x.mean((0,2,3)), torch.zeros(3), atol=1e-5) and torch.allclose(x.std((0,2,3)), torch.ones(3), atol=1e-4)
    given = Normalize(*imagenet_stats)
    given.setup(dl)
    assert given.mean.flatten().tolist()==torch.tensor(imagenet_stats[0]).tolist()
    assert repr(pickle.loads(pickle.dumps(norm)))==repr(norm)

# DataLoaders
def test_any_iterables_of_batches():
    dls = DataLoaders([(torch.ones(2,1), torch.ones(2))], [], path='x', loss_func=noop, vocab=['a'])
    assert (dls.one_batch()[0].shape, dls.path, dls.loss_func, dls.c, len(dls), dls.n_inp) == ((2,1), Path('x'), noop, 1, 2, None)
    assert repr(dls) == f'DataLoaders: 1 and 0 batches, 1 classes, on {dls.device}'
    assert repr(DataLoaders(iter([]), [], device='cpu')) == 'DataLoaders: ? and 0 batches, on cpu'
    assert (dls.bs, DataLoaders([]).vocab, DataLoaders([]).loss_func) == (None, None, None)
    for f in (lambda o: o.c, get_c):
        with pytest.raises(AttributeError, match='give `DataLoaders` a `vocab`'): f(DataLoaders([], []))
    for f in (lambda o: o.valid, lambda o: o.valid_ds):
        with pytest.raises(AttributeError, match='no loader to validate with'): f(DataLoaders([]))
    dls.c,dls.vocab = 5,list('abcde')
    assert get_c(dls)==5 and repr(dls).startswith('DataLoaders: 1 and 0 batches, 5 classes')

def test_what_the_training_set_says(fns):
    class Points(Dataset): c,n_inp,loss_func = 4,2,staticmethod(noop)
    dls = DataLoaders(DataLoader(Points(fns), bs=3, n_workers=0), loader(fns))
    assert (dls.c, dls.n_inp, dls.loss_func, dls.vocab, dls.bs) == (4, 2, noop, ['cat','dog'], 3)
    assert get_c(by_hand(fns))==2

def test_whose_transforms_and_device(fns):
    def own(): return loader(fns, after_batch=[ToFloat()], device='meta'),loader(fns)
    a,b = own()
    kept = DataLoaders(a, b)
    assert L(kept[0].after_batch)==L(kept.after_batch) and len(kept.after_batch)==1 and not len(b.after_batch)
    assert (a.split_idx,b.split_idx,kept.device,b.device) == (0,1,torch.device('meta'),torch.device('meta'))
    assert next(iter(a))[0].dtype==torch.float32
    a,b = own()
    assert not len(DataLoaders(a, b, batch_tfms=[], device='cpu').after_batch) and not len(a.after_batch) and b.device==torch.device('cpu')
    assert DataLoaders([], a)[1].split_idx==1
    assert DataLoaders(b).to('meta') and b.device.type=='meta'

def test_cuda_is_the_best_device_there_is(fns):
    dls = by_hand(fns, device='meta')
    assert dls.cuda() is dls and dls.device==dls.train.device==default_device() and dls.cpu().device.type=='cpu'

def test_a_copy_has_its_own_loaders_over_the_same_data(fns):
    dls = by_hand(fns)
    twin = copy.deepcopy(dls)
    assert twin.train is not dls.train and twin.train_ds is dls.train_ds and twin.valid_ds is dls.valid_ds
    assert twin.vocab==dls.vocab and twin.train.split_idx==0 and twin.valid.split_idx==1
    twin.after_batch[1].mean += 1
    assert not torch.equal(twin.one_batch()[0], dls.one_batch()[0]) and torch.equal(twin.one_batch()[1], dls.one_batch()[1])
    for b in twin.train: pass
    assert twin.train.epoch==1 and dls.train.epoch==0
    twin.to('meta')
    assert dls.train.device.type!='meta'

def test_the_batches_of_pytorchs_loader(fns):
    ours = by_hand(fns)
    theirs = DataLoaders(torch.utils.data.DataLoader(ours.valid_ds, batch_size=4), device='cpu')
    assert theirs.train_ds is ours.valid_ds and theirs.c==2 and theirs.bs==4
    for a,b in zip(theirs.train, ours.valid, strict=True):
        for f in ours.after_batch: a = f(a)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

def test_with_closes_the_workers(fns):
    with DataLoaders(DataLoader(Dataset(fns), bs=2, n_workers=1)) as dls:
        next(iter(dls.train))
        workers = dls.train._workers
        assert workers.end.still_active()
    assert not workers.end.still_active()

# looking
class Halved:
    "A transform of one split that can be undone"
    split_idx = 0
    def __call__(self, b): return b[0]/2,*b[1:]
    def decode(self, b): return b[0]*2,*b[1:]

def test_decode(fns):
    dls = by_hand(fns)
    x,y = b = dls.one_batch()
    back = dls.train.decode(b)
    assert torch.allclose(back[0], ToFloat()(collate([dls.train_ds[i] for i in dls.train.order(0)[:4]]))[0], atol=1e-6) and back[1] is y
    assert torch.allclose(dls.train.decode((x,))[0], back[0])
    train,valid = DataLoaders(loader(fns), loader(fns), batch_tfms=[ToFloat(), Halved()], device='cpu')
    for dl in (train,valid): assert torch.equal(dl.decode(dl.one_batch())[0], ToFloat()(collate([dl.ds[i] for i in range(4)]))[0])
    assert torch.equal(train.one_batch()[0]*2, valid.one_batch()[0])

def test_decode_batch(fns):
    dls = by_hand(fns)
    items = dls.decode_batch(dls.valid.one_batch(), max_n=3)
    assert len(items)==3 and items.itemgot(1)==['cat']*3 and items[0][0].shape==(3,64,64) and all(0<=x.min()<=x.max()<=1 for x,_ in items)
    assert torch.allclose(items[2][0]*255, dls.valid_ds[2][0].permute(2,0,1).float(), atol=1e-3)
    assert len(dls.train.decode_batch(dls.train.one_batch()))==4 # of a batch of 4, at most 9
    dl = DataLoader([0]*2, n_workers=0)
    x = torch.full((2,3,4,4), 1.5, dtype=torch.float16)
    rows = dl.decode_batch((x, torch.tensor([1,0]), torch.tensor([.5,2]), torch.tensor([[1,2],[3,4]]), ['a','b']))
    (a,*first),(_,*second) = rows
    assert a.dtype==torch.float32 and a.max()==1 and first[:2]==[1,.5] and first[2].tolist()==[1,2] and second[3]=='b'
    assert [len(o) for o in dl.decode_batch((x,))]==[1,1]
    assert DataLoaders([], vocab=['no','yes']).decode_batch((x, torch.tensor([1,0]))).itemgot(1)==['yes','no']
    assert DataLoaders(dl, vocab=['no','yes']).decode_batch((x, torch.tensor([1,0]))).itemgot(1)==['yes','no']

def shown(): return [ax for ax in plt.gcf().axes if ax.images]
def grid(): return plt.gcf().axes[0].get_gridspec().get_geometry()
def test_show_batch(fns):
    dls = by_hand(fns)
    dls.show_batch()
    assert len(shown())==4 and grid()==(2,2) and {o.get_title() for o in shown()}<={'cat','dog'}
    dls.show_batch(max_n=3, nrows=1, figsize=(7,5))
    assert len(shown())==3 and grid()==(1,3) and tuple(plt.gcf().get_size_inches())==(7,5)
    dls.show_batch(ncols=3)
    assert grid()==(2,3) and len(shown())==4
    b = dls.valid.one_batch()
    dls.show_batch(b, 3, alpha=.5)
    assert [o.get_title() for o in shown()]==['cat']*3 and shown()[0].images[0].get_alpha()==.5
    assert np.allclose(shown()[1].images[0].get_array()*255, dls.valid_ds[1][0].numpy(), atol=1e-3)
    axs = plt.subplots(1, 2)[1]
    dls.valid.show_batch(b, ctxs=axs)
    assert len(shown())==2 and shown()[0] is axs[0]
    n,items = len(plt.get_fignums()),dls.show_batch(b, show=False)
    assert len(plt.get_fignums())==n and items.itemgot(1)==['cat']*4

def test_show_one_item_again_and_again(fns):
    ds = Dataset(fns, tfm=lambda x: torch.full_like(x, int(torch.randint(256, (1,)))))
    items = DataLoader(ds, bs=2, n_workers=0, after_batch=[ToFloat()]).show_batch(unique=True, max_n=5, show=False)
    assert len(items)==5 and items.itemgot(1)==['cat']*5 and len({float(x.mean()) for x,_ in items})>1

def test_show_batches_of_others(fns):
    DataLoaders([(torch.zeros(2,3,4,4), torch.tensor([3,1]))], device='cpu').show_batch()
    assert [o.get_title() for o in shown()]==['3','1']
    bytes_ = DataLoaders(torch.utils.data.DataLoader(Dataset(fns), batch_size=4), device='cpu')
    bytes_.show_batch()
    assert [o.get_title() for o in shown()]==['cat']*4 and shown()[0].images[0].get_array().dtype==np.uint8

@pytest.mark.skipif(sys.platform!='linux', reason='names of files are text there')
def test_names_that_are_not_utf8_are_shown(tmp_path):
    for o in (b'train/caf\xe9', b'train/$5_$9', b'val/$5_$9'):
        os.makedirs(d := os.fsencode(tmp_path)+b'/'+o)
        for i in range(3): Image.new('RGB', (8,8)).save(os.fsdecode(d+b'/\xff%d.png'%i))
    dls = folder_dls(tmp_path, size=8, bs=6, n_workers=0, device='cpu')
    dls.show_batch()
    plt.gcf().canvas.draw()
    assert {o.get_title() for o in shown()}=={'caf�','$5_$9'}

# a folder
def test_folder_dls(pictures):
    path = pictures(train_dog=6, train_cat_a=7, val_dog=5)
    dls = folder_dls(path, size=(32,48), bs=4, seed=3, n_workers=0, device='meta', skip_bad=True)
    assert (len(dls.train),len(dls.valid),dls.path,dls.device.type,dls.bs,dls.vocab,dls.c) == (3,2,path,'meta',4,['cat','dog'],2)
    assert (dls.train.seed,dls.train.skip_bad,dls.train.shuffle,dls.valid.shuffle,dls.valid.n_workers) == (3,True,True,False,0)
    assert dls.train_ds.y.tolist()==[0]*7+[1]*6 and dls.valid_ds.y.tolist()==[1]*5
    x,y = dls.cpu().one_batch()
    want = torch.stack([dls.train_ds[i][0] for i in dls.train.order(0)[:4]]).permute(0,3,1,2).float()/255
    assert x.shape==(4,3,32,48) and torch.equal(x, Normalize(*imagenet_stats).encode(want))
    a,b = [folder_dls(path, seed=3, n_workers=0, device='cpu', bs=5) for _ in range(2)]
    assert all(torch.equal(p[0], q[0]) for p,q in zip(a.train, b.train, strict=True))

def test_where_a_folders_pictures_validate(pictures):
    for o in ('val','valid'): assert len(folder_dls(pictures(o, train_dog=2, **{f'{o}_dog':1}), n_workers=0).valid_ds)==1
    assert len(folder_dls(pictures('both', train_dog=2, val_dog=1, valid_dog=2), n_workers=0).valid_ds)==2

def test_a_folders_pictures_are_decoded_once(pictures):
    path = pictures(train_dog=6, train_cat=6, val_dog=5)
    kw = dict(bs=4, seed=1, n_workers=0, size=16, device='cpu')
    dls,want = folder_dls(path, cls=CachedDataset, **kw),folder_dls(path, **kw)
    for _ in range(2):
        for a,b in zip(dls.train, want.train, strict=True): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert dls.train_ds.in_memory

def test_folders_that_will_not_do(pictures, tmp_path):
    path = pictures(train_dog=2, val_cat=1)
    with pytest.raises(ValueError, match="The class 'cat' of .* is not among the classes"): folder_dls(path)
    with pytest.raises(FileNotFoundError, match='no folder .*/none/train'): folder_dls(tmp_path/'none')
    (tmp_path/'empty/train').mkdir(parents=True)
    with pytest.raises(ValueError, match='There are no pictures in .*/empty/train'): folder_dls(tmp_path/'empty')
    Image.new('RGB', (4,4)).save(path/'train/cover.png')
    with pytest.raises(ValueError, match='cover.png lies in no class folder'): folder_dls(path)

def test_normalize_takes_no_function():
    def encodes(self, x): return x
    with pytest.raises(TypeError, match="`Normalize` takes numbers, and not a function such as 'encodes'"): Normalize(encodes)

def test_new_loaders_are_like_the_old_but_for_what_is_given(tmp_path):
    items = [(torch.full((1,), float(i)),i) for i in range(8)]
    old = DataLoaders(DataLoader(items, 2, n_workers=0, shuffle=True), DataLoader(items, 2, n_workers=0), path=tmp_path, vocab=list('abcdefgh'), loss_func=len, device='cpu')
    new = old.new(bs=4)
    assert ([o.bs for o in new.loaders], [o.shuffle for o in new.loaders], [o.split_idx for o in new.loaders])==([4,4], [True,False], [0,1]) and old.bs==2
    assert (new.path, new.vocab, new.loss_func, new.device)==(old.path, old.vocab, len, old.device) and type(new) is DataLoaders
