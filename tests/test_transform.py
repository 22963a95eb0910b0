"Pipelines, data sets and their loaders: every argument, and what is said of bad data"
import copy,random
from pathlib import Path

import numpy as np,pytest,torch
from PIL import Image
from fastcore.all import L,first,fastuple
from torch import Tensor
from scratchai.core import *
from scratchai.data import *
from scratchai.losses import *
from scratchai.transform import *
from scratchai.transform import test_set as further_set

def squish(o:PILImage): return o.resize((16,16), 2)
item = [squish, ToTensor]
quick = dict(num_workers=0, device='cpu')

@pytest.fixture
def fns(pictures): return get_image_files(pictures(train_cat=6, train_dog=6, val_cat=2, val_dog=2))
@pytest.fixture
def dsets(fns): return Datasets(fns, [[PILImage.create],[parent_label, Categorize]], splits=GrandparentSplitter(valid_name='val')(fns))

class Plus(Transform):
    def __init__(self, n=1, order=0, split_idx=None):
        self.n = n
        super().__init__(order=order, split_idx=split_idx)
    def encodes(self, o:int): return o+self.n
    def decodes(self, o:int): return o-self.n
class Times(Transform):
    order = 1
    def encodes(self, o:int): return o*10
    def decodes(self, o:int): return o//10
class Shown(str):
    def show(self, ctx=None, **kwargs): return self

# pipelines
def test_sorted_by_order_and_undone_in_reverse():
    p = Pipeline([Times, Plus, Plus(5)])
    assert p(1)==70 and p.decode(70)==1 and [type(f) for f in p]==[Plus,Plus,Times] and p[1].n==5 and len(p)==3
    assert repr(Pipeline([Plus, len]))=='Pipeline: Plus -> len' and Pipeline()(3)==3 and Pipeline(Times)(2)==20 and Pipeline(Pipeline(Times))(2)==20
    assert [f.name for f in Pipeline([Pipeline([Times, len]), Plus])]==['len','Plus','Times'] and p((1,'a'))==(70,'a')
    p.add(Plus(100, order=9))
    assert p(1)==170

def test_what_is_no_function():
    for bad in (3, ['a', Plus]):
        with pytest.raises(TypeError, match='A transform is a function, not a'): Pipeline(bad)

def test_objects_with_a_decode_take_the_whole_tuple():
    norm = Normalize([.5], [.5])
    x = TensorImage(torch.rand(2,1,3,3))
    p = Pipeline([norm, Plus])
    assert p[1] is norm and torch.allclose(p((x,3))[0], (x-.5)/.5) and p((x,3))[1]==4
    assert torch.allclose(p.decode(p((x,3)))[0], x) and type(Pipeline(Normalize)[0]) is Normalize
    class Early:
        order,split_idx = -1,1
        def __call__(self, o): return o,
        def decode(self, o): return o[0]
    assert Pipeline([Early()])(3)==3 and Pipeline([Early], split_idx=1)(3)==(3,) and Pipeline(Early, 1).decode((3,))==3 and Pipeline(Early).decode((3,))==(3,)

def test_a_split_decides_what_runs():
    p = Pipeline([Plus(1), Plus(10, split_idx=0), Plus(100, split_idx=1)])
    assert p(0)==1 and p(0, split_idx=0)==11 and p(0, 1)==101 and Pipeline(p, split_idx=1)(0)==101 and Pipeline(p, 1)(0, 0)==11
    assert p.decode(101, split_idx=1)==0 and Pipeline(p, 0).decode(11)==0

def test_setup_sees_what_comes_before():
    class Seen(Transform):
        def setups(self, items): self.items = list(items)
        def encodes(self, o): return -o
    tls = TfmdLists([1,2,3,4], [Plus, Seen, Seen], splits=([1,2],[0,3]))
    assert tls.tfms[1].items==[3,4] and tls.tfms[2].items==[-3,-4]
    assert TfmdLists([1,2,3], [Seen], splits=([1],[0]), train_setup=False).tfms[0].items==[1,2,3]
    assert not hasattr(TfmdLists([1,2,3], [Seen], do_setup=False).tfms[0], 'items')
    p,f = Pipeline(Plus),Seen()
    p.add(f, [5,6])
    assert f.items==[5,6] and len(p)==2
    p.add(g := Seen(), tls, train_setup=True)
    assert g.items==[3,4]

def test_who_draws():
    def f(o): return o
    assert Pipeline(f).draws() and Pipeline(f).draws(1) and not Pipeline().draws() and not Pipeline([ToTensor, IntToFloatTensor, PILImage.create, parent_label, Categorize]).draws()
    f.random = 'train'
    assert Pipeline(f).draws() and Pipeline(f).draws(0) and not Pipeline(f).draws(1)
    t = Plus(split_idx=0)
    assert Pipeline(t).draws(0) and not Pipeline(t).draws(1)

def test_decode_until_it_can_show_itself(capsys):
    class Text(Transform):
        def decodes(self, o:int): return Shown(o)
        def decodes(self, o:Shown): return 'beyond'
    p = Pipeline([Text(), Text()])
    assert p.decode(3, full=False)=='3' and p.decode(3)=='beyond' and p.show(3)=='3' and p.decode((Shown(3),Shown(4)), full=False)==('3','4')

def test_attributes_come_from_the_last_that_has_them():
    p = Pipeline([Plus(1), Plus(2), Times])
    assert p.n==2
    with pytest.raises(AttributeError, match="Pipeline has no 'vocab', nor has any of its transforms"): p.vocab
    assert copy.deepcopy(p)(1)==p(1)

def test_what_failed():
    with pytest.raises(TransformError, match=r"^<lambda> failed on a tuple \(int, Tensor \(2, 3\)\): ZeroDivisionError"): Pipeline(ItemTransform(lambda o: 1/0))((1,torch.zeros(2,3)))
    with pytest.raises(TransformError, match='^<lambda> failed on a str') as e: Pipeline([Transform(lambda o: Pipeline(lambda o: 1/0)('a'))])(1)
    assert isinstance(Pipeline(lambda o: o)(e.value), TransformError)
    class Bad:
        def __call__(self, o): raise KeyError('x')
        def decode(self, o): return o
    with pytest.raises(TransformError, match="^Bad failed on a int: KeyError: 'x'"): Pipeline(Bad)(1)

# labels
def test_categorize():
    c = Categorize()
    c.setup(['b','a','b'])
    assert (c.vocab, c.c, int(c('b')), c.decode(c('b')))==(['a','b'], 2, 1, 'b') and type(c('a')) is TensorCategory and type(c.decode(c('a'))) is Category
    assert Categorize(['b','a']).vocab==['a','b'] and Categorize(['b','a'], sort=False).vocab==['b','a'] and isinstance(c.loss_func, CrossEntropyLossFlat)
    na = Categorize(['a'], add_na=True)
    assert int(na('zzz'))==0 and na.decode(na('zzz'))=='#na#' and int(na('a'))==1
    given = Categorize(['b'])
    given.setup(['a'])
    assert given.vocab==['b'] and 'vocab' in repr(given)
    with pytest.raises(ValueError, match=r"The label 'z' is not among the classes: \['a', 'b'\]"): c('z')

def test_a_message_names_a_few_of_many_classes():
    with pytest.raises(ValueError, match=r"'z' is not among the classes: \(#1000\) \['0', '1', '10', '100', '101'\.\.\.\]"): Categorize(map(str, range(1000)))('z')

def test_a_label_that_training_does_not_have(fns):
    splits = range(6),range(6, len(fns))
    tls = TfmdLists(fns, [parent_label, Categorize], splits=splits)
    with pytest.raises(TransformError, match=r"Categorize failed on item 2 \(.*dog.*\), a str: ValueError: The label 'dog' is not among"): tls.valid[2]
    dls = Datasets(fns, [[PILImage.create],[parent_label, Categorize]], splits=splits).dataloaders(bs=2, after_item=item, **quick)
    with pytest.raises(ItemError, match=r"Item \d \(.*dog.*\) cannot be read: TransformError: Categorize failed on a str: ValueError: The label 'dog'"): list(dls.valid)

# lists
def test_tfmd_lists(fns, capsys):
    tls = TfmdLists(fns, [parent_label, Categorize], splits=GrandparentSplitter(valid_name='val')(fns))
    assert type(tls.items) is PackedPaths and len(tls)==16 and tls.n_subsets==2 and (len(tls.train), len(tls.valid))==(12,4) and tls.valid.split_idx==1
    assert [int(o) for o in tls]==[int(o) for o in tls[:]]==[int(tls[i]) for i in range(16)] and [int(o) for o in tls[[0,15]]]==[0,1] and len(tls[np.arange(16)<3])==3
    assert int(tls[np.int64(0)])==0 and int(tls[-1])==1 and tls.vocab==['cat','dog'] and tls.decode(tls[0])=='cat' and tls.subset(1).items[0]==fns[12]
    assert len(tls.new_empty())==0 and tls.new_empty().vocab is tls.vocab and not tls.random and TfmdLists(fns, lambda o: o).random
    assert repr(tls.valid).startswith('TfmdLists: 4 items\nPipeline: parent_label -> Categorize') and capsys.readouterr().out==''
    TfmdLists([1], Plus, verbose=True), tls.show(tls[0])
    assert capsys.readouterr().out=='Setting up Pipeline: Plus on 1 items\ncat\n'
    assert TfmdLists([1,2], Plus).splits==[range(2),[]] and TfmdLists([1,2], Plus).train[:]==[2,3] and len(TfmdLists([1,2], Plus).valid)==0
    assert TfmdLists([1,2], Plus, split_idx=1).split_idx==1 and TfmdLists([1,2], Plus(split_idx=0), splits=([0],[1])).train[0]==2
    assert pytest.raises(AttributeError, getattr, tls, 'nothing') and copy.deepcopy(tls)[0]==tls[0]

def test_types_on_the_way():
    tls = TfmdLists([1,2], [Plus, str], types=[int,int,str])
    assert tls.types==[int,int,str] and further_set(tls, [3])[0]=='4' and further_set(tls, ['a'])[0]=='a'

@pytest.mark.parametrize('splits,say', [(([],[0]), 'Of 3 items, none are for training'), (([0,1],[1,2]), 'Item 1 is in split 0 and in split 1'), (([0],[3]), 'Split 1 names item 3, but there are 3 items, 0 to 2')])
def test_splits_that_are_none(splits, say):
    for make in (lambda: TfmdLists([1,2,3], Plus, splits=splits), lambda: Datasets([1,2,3], [Plus], splits=splits)):
        with pytest.raises(ValueError, match=say): make()

# data sets
def test_datasets(fns, dsets):
    assert len(dsets)==16 and dsets.n_inp==1 and (len(dsets.train), len(dsets.valid), dsets.n_subsets)==(12,4,2) and dsets.valid.split_idx==1
    im,y = dsets[0]
    assert type(im) is PILImage and int(y)==0 and dsets.decode((im,y))[1]=='cat' and dsets.vocab==['cat','dog'] and dsets.c==2 and isinstance(dsets.loss_func, CrossEntropyLossFlat)
    assert [int(o[1]) for o in dsets[[0,-1]]]==[0,1] and len(dsets[:3])==3 and len(list(dsets))==16 and dsets.valid.items[0]==fns[12]
    assert dsets.show(dsets[0]).get_title()=='cat'==show_at(dsets, 0, alpha=.5).get_title() and repr(dsets).startswith('Datasets: 16 items\nPipeline: PILImage.create\nPipeline: parent_label -> ') and not dsets.random
    three = Datasets(L(1,2), [Plus, Times, [str, Categorize]], n_inp=2)
    assert three[0][:2]==(2,10) and three.n_inp==2 and Datasets([1], [Plus, Times, Plus]).n_inp==2 and Datasets([1], [Plus, Times]).n_inp==1 and Datasets([1])[0]==(1,)
    assert Datasets(tls=[TfmdLists([1,2], Plus), TfmdLists([5,6], Times)])[1]==(3,60) and Datasets(tls=three.tls).vocab==['1','2']
    two = Datasets(['a','b'], [Categorize, Categorize])
    assert two.vocab==[['a','b'],['a','b']] and not Datasets(['a'], [Categorize], do_setup=False).vocab
    assert pytest.raises(AttributeError, getattr, two, 'nothing')

def test_functions_get_paths_and_ours_may_get_text(fns):
    seen = []
    Datasets(fns, [[PILImage.create],[lambda o: seen.append(type(o)), str]])[0]
    assert issubclass(seen[0], Path) and type(Datasets(fns, [[PILImage.create, lambda o: o.size],[parent_label]])[0][1]) is str

def test_a_function_that_fails_names_its_item(fns):
    def f(o): raise KeyError(o.name) if '3' in o.name else 0
    for ds in (TfmdLists(fns, f), Datasets(fns, [f])):
        with pytest.raises(TransformError, match=r"^f failed on item 3 \(.*3.JPEG\), a PosixPath: KeyError: '3.JPEG'$") as e: ds[3]
        assert isinstance(e.value.__cause__, KeyError)
    with pytest.raises(TransformError, match=r"^<lambda> failed on item 1, a str: ZeroDivisionError"): TfmdLists(['a','b'], lambda o: 1/(o=='a'))[1]

# loaders
@pytest.mark.parametrize('n', [0,2])
def test_batches_are_those_of_the_road_by_hand(doodles_path, n):
    fns = get_image_files(doodles_path, folders=['train','val'])
    fns = L(o for o in fns if int(o.stem.split('_')[1])%10==0)
    def small(o:PILImage): return o.reduced(64).resize((64,64), 2)
    small.random = False
    splits = GrandparentSplitter(valid_name='val')(fns)
    dls = Datasets(fns, [[PILImage.create],[parent_label, Categorize]], splits=splits).dataloaders(bs=32, seed=3, num_workers=n, device='cpu',
        after_item=[ToTensor, small], after_batch=[Normalize.from_stats(*imagenet_stats), IntToFloatTensor])
    train = Dataset(fns[splits[0]], size=64)
    by_hand = DataLoader(train, 32, shuffle=True, drop_last=True, seed=3, n_workers=0, after_batch=[ToFloat(), Normalize(*imagenet_stats)])
    with dls:
        for a,b in zip(dls.train, by_hand, strict=True): assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and type(a[0]) is TensorImage and type(a[1]) is TensorCategory
        assert a[0].is_contiguous(memory_format=torch.channels_last) and not dls.train.ds.random

def test_arguments_of_dataloaders(dsets, tmp_path):
    dls = dsets.dataloaders(bs=4, after_item=item, **quick)
    assert [len(o) for o in dls.loaders]==[3,1] and dls.bs==4==dls.valid.bs and dls.train.shuffle and dls.train.drop_last and not (dls.valid.shuffle or dls.valid.drop_last)
    assert (dls.vocab, dls.c, dls.n_inp, str(dls.loss_func), dls.train.n, dls.device.type)==(['cat','dog'], 2, 1, 'CrossEntropyLossFlat', 12, 'cpu')
    assert dls.train.split_idx==0 and dls.valid.split_idx==1 and dls.valid_ds.items[0]==dsets.items[12] and dls.train_ds.loss_func is dls.loss_func
    dls = dsets.dataloaders(5, 3, False, True, after_item=item, path=tmp_path, seed=9, **quick)
    assert dls.bs==5 and dls.valid.bs==3 and not dls.train.shuffle and dls.valid.shuffle and not dls.train.drop_last and dls.path==tmp_path and dls.train.seed==9==dls.valid.seed
    assert dsets.dataloaders(drop_last=False, **quick).train.drop_last is False and dsets.dataloaders(n_workers=0, device='cpu').train.n_workers==0 and dsets.dataloaders(num_workers=3, device='cpu').valid.n_workers==3
    class Mine(TfmdDL): pass
    assert type(dsets.dataloaders(dl_type=Mine, **quick).valid) is Mine and type(Datasets([1], [Plus], dl_type=Mine).dataloaders(**quick).train) is Mine is type(TfmdLists([1], Plus, dl_type=Mine).dataloaders(**quick).valid)
    assert [o.bs for o in dsets.dataloaders(dl_kwargs=[dict(bs=2),dict(bs=3)], **quick).loaders]==[2,3]
    three = TfmdLists(range(6), Plus, splits=([0,1],[2,3],[4,5])).dataloaders(bs=2, **quick)
    assert len(three.loaders)==3 and three[2].one_batch().tolist()==[5,6] and three[2].split_idx==2

def test_transforms_run_in_their_split_and_place(dsets):
    class Bright(Transform):
        order,split_idx = 20,0
        def encodes(self, o:TensorImage): return o+10
        def decodes(self, o:TensorImage): return o-10
    calls = []
    def before(items):
        calls.append(len(items))
        return items[:-1]
    class Mark(Transform):
        split_idx,order = 0,9
        def encodes(self, o:TensorImage): return o*0
    dls = dsets.dataloaders(bs=4, after_item=[Mark, *item], before_batch=before, after_batch=[Bright(), IntToFloatTensor], **quick)
    train,valid = dls.train.one_batch(),dls.valid.one_batch()
    assert calls[-2:]==[4,4] and len(train[0])==len(valid[1])==3 and (train[0]==10).all() and valid[0].max()<=1
    assert dls.train.decode(train)[0].max()==0 and torch.equal(dls.valid.decode(valid)[0], valid[0])

def test_transforms_of_lists_of_items_run_in_their_split():
    class Fewer(Transform):
        split_idx = 0
        def encodes(self, o:list): return o[:2]
    for ds in (TfmdLists(range(8), Plus, splits=(range(4),range(4,8))).dataloaders(4, before_batch=Fewer, **quick),
               DataLoaders.from_dsets([*range(4)], [*range(4)], bs=4, before_batch=Fewer, **quick)):
        assert (len(ds.train.one_batch()), len(ds.valid.one_batch()), ds.train.split_idx, ds.valid.split_idx)==(2,4,0,1)

def test_setup_of_batch_transforms_is_on_training(dsets):
    dls = dsets.dataloaders(bs=4, after_item=item, after_batch=[Normalize(), IntToFloatTensor], shuffle=False, **quick)
    x = dls.train.one_batch()[0]
    assert abs(x.mean())<1e-4 and dls.train.after_batch is dls.valid.after_batch
    norm = dls.train.after_batch[1]
    mean = norm.mean.clone()
    dls.valid.new(), dls.test_dl(dsets.items[:2])
    assert torch.equal(norm.mean, mean) and TfmdDL(dsets, after_batch=Normalize, do_setup=False, **quick).after_batch[0].mean is None

def test_arguments_of_a_loader():
    dl = TfmdDL([(i,i*2) for i in range(10)], 4, num_workers=0)
    assert [o.tolist() for o in dl.one_batch()]==[[0,1,2,3],[0,2,4,6]] and dl.n==10 and len(dl)==3 and dl.do_item(3)==(3,6) and len(dl.new(drop_last=True))==2
    assert TfmdDL([1,2], collate_fn=tuple, num_workers=0).one_batch()==(1,2) and TfmdDL(range(9), shuffle=True, seed=1, num_workers=0).one_batch().tolist()!=list(range(9))
    class Neg(TfmdItems):
        def __getitem__(self, i): return -super().__getitem__(i)
    dl = TfmdDL([1,2], items=Neg, after_item=Plus(5), n_workers=0, bs=1)
    assert dl.one_batch().tolist()==[-6] and dl.new([7]).one_batch().tolist()==[-12] and len(dl.after_item)==1
    assert TfmdDL([1], device='cpu', prefetch=5, num_workers=0).new().prefetch==5 and TfmdDL([1], num_workers=2).new(num_workers=0).n_workers==0==dl.num_workers
    assert pytest.raises(AttributeError, getattr, dl, 'nothing') and pytest.raises(AttributeError, getattr, dl, 'vocab')

def test_a_new_loader_has_the_same_collate_function_and_transforms():
    dl = TfmdDL([(1,)]*4, 2, after_batch=Plus, before_batch=lambda o: o+o, collate_fn=lambda o: (len(o),), num_workers=0)
    assert dl.one_batch()==(5,)==dl.new().one_batch() and dl.new(bs=1).one_batch()==(3,) and dl.new(after_batch=Times).one_batch()==(40,) and dl.new(collate_fn=lambda o: (7,)).one_batch()==(8,)

def draws(o): return random.random(),np.random.rand(),torch.rand(1).item()
def test_random_items_are_those_of_their_seed():
    def batches(n, **kw):
        with TfmdDL(TfmdLists(range(8), draws), 4, num_workers=n, seed=1, **kw) as dl: return [b for _ in range(2) for b in dl]
    a = batches(0)
    assert all(torch.equal(p, q) for x,y in zip(a, batches(2)) for p,q in zip(x, y)) and not torch.equal(a[0][0], a[2][0]) and TfmdItems(TfmdLists([1], draws)).random
    assert not TfmdItems(TfmdLists([1], parent_label)).random and TfmdItems(TfmdLists([1], parent_label), draws).random and TfmdItems([1]).random

class OwnGenerator:
    def __init__(self): self.rng = random.Random(0)
    def __len__(self): return 8
    def __getitem__(self, i): return self.rng.random()
    def reseed(self, s): self.rng = random.Random(s)
class Noise(Transform):
    def reseed(self, keys): self.rng = random.Random(str(keys))
    def encodes(self, o:float): return o+self.rng.random()

@pytest.mark.parametrize('make', [lambda: OwnGenerator(), lambda: TfmdLists([0.]*8, Noise), lambda: Datasets([0.]*8, [Noise,[Noise,Noise]])])
@pytest.mark.parametrize('after', [None, Noise])
def test_what_has_a_generator_of_its_own_is_reseeded(make, after):
    def batches(n):
        with TfmdDL(make(), 4, num_workers=n, seed=1, after_item=after) as dl: return [torch.stack(b) if isinstance(b, tuple) else b for _ in range(2) for b in dl]
    a,b = batches(0),batches(2)
    assert all(map(torch.equal, a, b)) and len(torch.cat([o.flatten() for o in a]).unique())>=16

def test_keys_of_batch_transforms():
    class Keys(Transform):
        got = []
        def reseed(self, keys): self.got.append(keys)
        def encodes(self, o:Tensor): return o
    def seen(n, **kw):
        Keys.got = []
        with TfmdDL(list(range(8)), 4, num_workers=n, seed=1, after_batch=[Keys,Keys], **kw) as dl: list(dl), list(dl)
        return Keys.got
    a = seen(0)
    assert a==seen(2) and [len(o) for o in a]==[4]*8 and len({k for o in a for k in o})==32 and a!=seen(0, shuffle=True)

def test_lambdas_and_own_classes_work_in_workers(fns):
    dls = Datasets(fns, [[PILImage.create],[lambda o: o.parent.name, Categorize]], splits=RandomSplitter(seed=1)(fns)).dataloaders(bs=4, after_item=item, num_workers=2, device='cpu')
    with dls: assert {int(y) for b in dls.train for y in b[1]}=={0,1} and len(first(dls.valid)[0])==3

def test_decode_and_show(dsets):
    dls = dsets.dataloaders(bs=8, after_item=item, after_batch=[IntToFloatTensor, Normalize.from_stats(*imagenet_stats, cuda=False)], **quick)
    b = dls.one_batch()
    items = dls.train.decode_batch(b, max_n=5)
    assert len(items)==5 and type(items[0][0]) is TensorImage and 0<=items[0][0].min()<=items[0][0].max()<=1 and items[0][1]==dls.vocab[int(b[1][0])]
    assert torch.equal(dls.train.decode(b)[0][0], items[0][0]) and torch.equal(dls.train.decode((b[0],))[0][0], items[0][0])
    show = dls.train.show_batch
    assert len(show(b, 3, show=False))==3 and len(show(show=False))==8
    ctxs = subplots(1, 3)[1]
    show(b, 2, ctxs=ctxs, vmin=.5)
    assert [len(a.images) for a in ctxs]==[1,1,0] and ctxs[0].get_title()==items[0][1]
    import matplotlib.pyplot as plt
    def shape(**kw):
        plt.close('all')
        show(b, **kw)
        rows = plt.gca().get_gridspec()
        return rows.nrows,rows.ncols,*plt.gcf().get_size_inches()
    assert shape(max_n=4)[:2]==(2,2) and shape(nrows=1)[:2]==(1,8) and shape(ncols=4)[:2]==(2,4) and shape(figsize=(3,4))[2:]==(3,4)
    same = show(unique=True, max_n=3, show=False)
    assert all(torch.equal(o[0], same[0][0]) for o in same) and len(same)==3

def test_items_that_decode_themselves():
    class Half(Transform):
        def encodes(self, o:TensorImage): return o/2
        def decodes(self, o:TensorImage): return o*2
    ds = TfmdLists([TensorImage(torch.ones(1,2,2))]*2, Half)
    dl = TfmdDL(ds, 2, after_item=Half, num_workers=0)
    assert dl.one_batch().max()==.25 and dl.decode_batch(dl.one_batch())[0].max()==1

class Pair(fastuple):
    def show(self, ctx=None, **kwargs): return show_image(torch.cat(self[:2], 2), ctx=ctx, title=str(bool(self[2])))
class MakePair(Transform):
    def __init__(self, fns): self.fns = fns
    def encodes(self, fn:Path):
        other = random.choice(self.fns)
        return Pair(PILImage.create(fn), PILImage.create(other), parent_label(fn)==parent_label(other))

@pytest.mark.parametrize('n', [0,2])
def test_a_tuple_of_ones_own(fns, n):
    tls = TfmdLists(fns, MakePair(fns), splits=RandomSplitter(seed=1)(fns))
    dls = tls.dataloaders(bs=4, seed=1, after_item=[squish, ToTensor], after_batch=[IntToFloatTensor, Normalize.from_stats(*imagenet_stats)], num_workers=n, device='cpu')
    with dls: b = first(dls.train)
    assert type(b) is Pair and [type(o) for o in b]==[TensorImage,TensorImage,Tensor] and b[0].min()<0 and b[1].shape==(4,3,16,16)
    ctxs = subplots(1, 4)[1]
    dls.train.show_batch(b, ctxs=ctxs)
    assert [o.get_title() for o in ctxs]==[str(bool(o)) for o in b[2]] and 0<=dls.train.decode(b)[1].min()

def test_nested_tuples_keep_their_classes():
    dl = TfmdDL([(Pair(1,2),3)]*2, 2, num_workers=0)
    assert type(dl.one_batch()[0]) is Pair and type(dl.decode_batch(dl.one_batch())[0][0]) is Pair

# what is wrong with an item
@pytest.mark.parametrize('n', [0,2])
def test_faults_of_items_name_the_file(fns, n):
    bad = fns[0].parent/'z.jpg'
    bad.write_bytes(b'no picture')
    for fs,say in (([*fns[:3],bad], r'Item 3 \(.*z.jpg\) cannot be read: TransformError: PILImage.create failed on a str: UnidentifiedImageError: .*z.jpg is no picture'),
                   ([*fns[:3],fns[0].parent/'gone.jpg'], r'Item 3 \(.*gone.jpg\) cannot be read: .*FileNotFoundError')):
        with TfmdDL(Datasets(fs, [[PILImage.create]]), 4, num_workers=n, after_item=item) as dl:
            with pytest.raises(ItemError, match=say): list(dl)
        with TfmdDL(Datasets(fs, [[PILImage.create]]), 4, num_workers=n, after_item=item, skip_bad=True) as dl, pytest.warns(UserWarning, match='1 of 4 items were left out'):
            assert len(list(dl)[0][0])==3 and dl.bad[0].index==3
    with TfmdDL(Datasets(fns, [[PILImage.create]]), 4, num_workers=n, after_item=[ToTensor, Transform(lambda o: o.nothing, order=9)]) as dl:
        with pytest.raises(ItemError, match=r'TransformError: <lambda> failed on a tuple \(TensorImage \(3, 30, 40\)\): AttributeError|TransformError: <lambda> failed on a'): list(dl)

def test_sizes_that_differ(fns):
    Image.new('RGB', (20,20)).save(fns[1])
    with TfmdDL(Datasets(fns, [[PILImage.create]]), 4, num_workers=0, after_item=ToTensor) as dl:
        with pytest.raises(LoaderError, match=r"A batch takes pictures of one size: give `item_tfms=Resize\(...\)`.*item .*1.JPEG has \(3, 20, 20\)"): dl.one_batch()

def test_pictures_are_no_tensors(dsets):
    with pytest.raises(LoaderError, match='TypeError: pictures are stacked as tensors: put `ToTensor` into `after_item`'): dsets.dataloaders(bs=2, after_item=squish, **quick).one_batch()
    assert len(TfmdDL(dsets, 2, collate_fn=list, num_workers=0).one_batch())==2

# further items
def test_test_dl(fns, dsets):
    dls = dsets.dataloaders(bs=4, after_item=item, after_batch=[IntToFloatTensor], **quick)
    x,y = dls.valid.one_batch()
    for items in (fns[12:], [str(o) for o in fns[12:]], [PILImage.create(o) for o in fns[12:]], [np.array(PILImage.create(o)) for o in fns[12:]]):
        b, = dls.test_dl(items).one_batch()
        assert torch.equal(b, x) and type(b) is TensorImage
    labelled = dls.test_dl(fns[12:], with_labels=True)
    assert torch.equal(labelled.one_batch()[1], y) and labelled.split_idx==1 and labelled.n_workers==0 and labelled.bs==4
    dl = dls.test_dl(fns, bs=2, num_workers=1, drop_last=True, skip_bad=True)
    assert (dl.bs, dl.n_workers, dl.drop_last, dl.skip_bad, dl.shuffle, len(dls.test_dl([])))==(2, 1, True, True, False, 0)
    assert len(dls.test_dl([fns[0].read_bytes()]).one_batch())==1 and TfmdLists(fns, [parent_label, Categorize]).dataloaders(**quick).test_dl(fns[:2]).one_batch().tolist()==[0,0]
    with pytest.raises(TypeError, match='`test_dl` needs a `TfmdDL`, not a DataLoader'): DataLoaders(DataLoader([1])).test_dl([1])
    assert DataLoaders(dls.train).test_dl(fns[:1]).split_idx==1

def test_test_dl_of_rows():
    rows = [dict(fn='a', y=1), dict(fn='b', y=2)]
    dsets = Datasets(rows, [[lambda o: o['fn'], Categorize(['a','b','c'])],[lambda o: o['y']]])
    dls = dsets.dataloaders(bs=2, shuffle=False, **quick)
    assert dls.test_dl([dict(fn='c')]).one_batch()[0].tolist()==[2] and dls.test_dl(rows, with_labels=True).one_batch()[1].tolist()==[1,2]

def test_from_dsets(dsets, tmp_path):
    from torch.utils.data import TensorDataset
    train,valid = TensorDataset(torch.arange(10), torch.arange(10)*2),TensorDataset(torch.arange(3), torch.arange(3))
    dls = DataLoaders.from_dsets(train, valid, bs=4, path=tmp_path, device='cpu', num_workers=0, after_batch=Transform(lambda o: o+1))
    assert [len(o) for o in dls.loaders]==[2,1] and dls.valid.one_batch()[0].tolist()==[1,2,3] and dls.path==tmp_path and dls.train.split_idx==0 and dls.valid.split_idx==1 and dls.train.shuffle
    dls = DataLoaders.from_dsets(train, bs=4, shuffle=False, drop_last=False, **quick)
    assert dls.one_batch()[0].tolist()==[0,1,2,3] and len(dls.train)==3
    class Mine(TfmdDL): pass
    assert type(DataLoaders.from_dsets(dsets.train, dl_type=Mine, **quick).train) is Mine and DataLoaders.from_dsets(dsets.train, dsets.valid, **quick).vocab==['cat','dog']

# with a learner
def test_training_and_the_rate_finder(dsets):
    from scratchai.learner import Learner
    from scratchai.layers import simple_cnn
    from scratchai.schedule import LRFinder
    def run(find):
        set_seed(1)
        dls = dsets.dataloaders(bs=4, seed=2, after_item=item, after_batch=[IntToFloatTensor, Normalize()], num_workers=2, device='cpu')
        with dls:
            learn = Learner(dls, simple_cnn(n_out=2))
            if find: learn.lr_find(num_it=3, show_plot=False)
            learn.fit(1)
            assert type(learn.loss_func) is CrossEntropyLossFlat
        return [p.detach().clone() for p in learn.model.parameters()],dls.train.state_dict()
    (a,s),(b,t) = run(False),run(True)
    assert all(map(torch.equal, a, b)) and s==t and s['epoch']==1

def test_where_a_loader_is_can_be_kept(dsets):
    dl = dsets.dataloaders(bs=4, seed=2, after_item=item, **quick).train
    it = iter(dl)
    next(it)
    state,rest = dl.state_dict(),[b[1] for b in it]
    twin = copy.deepcopy(dl)
    twin.load_state_dict(state)
    assert all(map(torch.equal, rest, [b[1] for b in twin])) and twin.after_batch is not dl.after_batch
