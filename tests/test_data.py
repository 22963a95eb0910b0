"From folders, names and tables to batches: every way, and what is said of mistakes"
import copy,os,sys,types,warnings
from pathlib import Path

import numpy as np,pytest,torch
from PIL import Image
from fastcore.all import L,noop
from scratchai import data
from scratchai.core import default_device
from scratchai.data import *

ims = ImageDataLoaders
def files(dl): return [Path(o).name for o in dl.ds.fns]
def labels(dl): return [dl.ds.vocab[i] for i in dl.ds.y]

@pytest.fixture
def fns(pictures):
    "8 pictures of two classes"
    return get_image_files(pictures(dog=4, cat=4))

# transforms
@pytest.mark.parametrize('shape', ((2,3,4,5),(3,4,5)))
def test_normalize(shape):
    x,norm = torch.rand(shape),Normalize.from_stats(*imagenet_stats)
    mean,std = (torch.tensor(o).view(3,1,1) for o in imagenet_stats)
    assert torch.equal(norm.encode(x), (x-mean)/std) and torch.allclose(norm.decode(norm.encode(x)), x, atol=1e-6)
    assert '0.4850' in repr(norm) and '0.2290' in repr(norm)
    assert torch.equal(norm((x,1,2))[0], norm.encode(x)) and norm((x,1,2))[1:]==(1,2)

def test_to_float():
    b = torch.randint(256, (2,4,5,3), dtype=torch.uint8)
    x,y,z = ToFloat()((b,1,2))
    assert torch.equal(x, b.permute(0,3,1,2)/255) and (y,z)==(1,2) and x.is_contiguous(memory_format=torch.channels_last)

# DataLoaders
def test_any_iterables_of_batches():
    dls = DataLoaders([(torch.ones(2,1), torch.ones(2))], [], path='x', loss_func=noop, vocab=['a'])
    assert (dls.one_batch()[0].shape, dls.path, dls.loss_func, dls.c, len(dls)) == ((2,1), Path('x'), noop, 1, 2)
    assert repr(dls) == f'DataLoaders: 1 and 0 batches, 1 classes, on {dls.device}'
    assert repr(DataLoaders(iter([]), [], device='cpu')) == 'DataLoaders: ? and 0 batches, on cpu'
    with pytest.raises(AttributeError, match='give `DataLoaders` a `vocab`'): DataLoaders([], []).c
    for f in (lambda o: o.valid, lambda o: o.valid_ds):
        with pytest.raises(AttributeError, match='no loader to validate with'): f(DataLoaders([]))

def test_whose_transforms_and_device(fns):
    ds = Dataset(fns)
    def own(): return DataLoader(ds, bs=4, n_workers=0, after_batch=[ToFloat()], device='meta'),DataLoader(ds, bs=4, n_workers=0)
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
    dls = ims.from_lists(fns, parent_label, n_workers=0, seed=0, device='meta')
    assert dls.cuda() is dls and dls.device==dls.train.device==default_device() and dls.cpu().device.type=='cpu'

def test_a_copy_has_its_own_loaders_over_the_same_data(fns):
    dls = ims.from_lists(fns, parent_label, n_workers=0, seed=0, bs=2)
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
    ours = ims.from_lists(fns, parent_label, (range(8),range(8)), n_workers=0, bs=4, device='cpu')
    theirs = DataLoaders(torch.utils.data.DataLoader(ours.valid_ds, batch_size=4), device='cpu')
    assert theirs.train_ds is ours.valid_ds and theirs.c==2
    for a,b in zip(theirs.train, ours.valid, strict=True):
        for f in ours.after_batch: a = f(a)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])

def test_with_closes_the_workers(fns):
    with ims.from_lists(fns, parent_label, n_workers=1, bs=2) as dls: next(iter(dls.train))
    dls.close()

# looking
def test_show_batch(fns, monkeypatch):
    shown = []
    monkeypatch.setattr(data, 'show_images', lambda xs, titles, nrows: shown.append((xs,titles,nrows)))
    DataLoaders(DataLoader(Dataset(fns), bs=4, n_workers=0), [], device='cpu').show_batch(max_n=3)
    assert shown[0][0].dtype==torch.uint8 and shown[0][1:]==(['cat']*3,2)
    dls = ims.from_lists(fns, parent_label, seed=0, n_workers=0, bs=2, device='cpu')
    x,y = dls.one_batch()
    dls.show_batch((x,y), nrows=1)
    assert torch.allclose(shown[1][0], dls.decode_batch(x)) and 0<=shown[1][0].min() and shown[1][0].max()<=1
    DataLoaders([(torch.zeros(2,3,4,4), torch.tensor([3,1]))], device='cpu').show_batch()
    assert shown[2][1:]==(['3','1'],1)

@pytest.mark.skipif(sys.platform!='linux', reason='names of files are text there')
def test_names_that_are_not_utf8_are_shown(tmp_path):
    for o in (b'caf\xe9', b'$5_$9'):
        os.makedirs(d := os.fsencode(tmp_path)+b'/'+o)
        for i in range(3): Image.new('RGB', (8,8)).save(os.fsdecode(d+b'/\xff%d.png'%i))
    dls = ims.from_folder(tmp_path, valid_pct=.34, seed=1, n_workers=0, size=8, bs=2, device='cpu')
    dls.show_batch()
    __import__('matplotlib.pyplot').pyplot.gcf().canvas.draw()
    assert dls.c==2

# from_folder
def test_deeper_folders_belong_to_their_class(pictures):
    path = pictures(train_dog=2, train_dog_2023=2, train_dog_2024_may=1, train_cat_a=3, val_dog_2024=1, val_cat=2)
    dls = ims.from_folder(path, n_workers=0, bs=2, device='cpu')
    assert dls.vocab==['cat','dog'] and labels(dls.train)==['cat']*3+['dog']*5 and labels(dls.valid)==['cat']*2+['dog']
    random = ims.from_folder(path/'train', valid_pct=.5, seed=1, n_workers=0)
    assert random.vocab==['cat','dog'] and len(random.train_ds)==len(random.valid_ds)==4
    assert sorted(labels(random.train)+labels(random.valid))==['cat']*3+['dog']*5

def test_valid_pct_of_a_folder_that_is_split_already(pictures):
    path = pictures(train_dog=4, train_cat=4, val_dog=2, masks_dog=5)
    dls = ims.from_folder(path, valid_pct=.2, seed=1, n_workers=0)
    assert dls.vocab==['cat','dog'] and len(dls.train_ds)+len(dls.valid_ds)==10
    assert ims.from_folder(pictures('modes', train=3, boat=3), valid_pct=.5, seed=1, n_workers=0).vocab==['boat','train'] # a class

def test_val_and_valid(pictures):
    for have,asked in (('val','valid'),('valid','val'),('valid','valid')):
        assert len(ims.from_folder(pictures(have, train_dog=2, **{f'{have}_dog':1}), valid=asked, n_workers=0).valid_ds)==1
    both = pictures('both', train_dog=2, val_dog=1, valid_dog=2)
    assert [len(ims.from_folder(both, valid=o, n_workers=0).valid_ds) for o in ('val','valid')]==[1,2]
    assert len(ims.from_folder(both, 'valid', 'train', n_workers=0).valid_ds)==2

def test_folders_that_will_not_do(pictures, tmp_path):
    path = pictures(train_dog=2, val_dog=1, other_dog=1)
    with pytest.raises(ValueError, match='o pictures to validate with are in .*/test/<class>/; .* has other, train, val'): ims.from_folder(path, valid='test')
    with pytest.raises(ValueError, match='o pictures to train with are in .*/train/<class>/; .* has no folders at all'): ims.from_folder(pictures('flat', x=1)/'x')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='o pictures to train with are in .*/empty/<class>/'): ims.from_folder(tmp_path/'empty', valid_pct=.2)
    Image.new('RGB', (4,4)).save(path/'train/cover.png')
    with pytest.warns(UserWarning, match='directly in .*train have no class'): dls = ims.from_folder(path, n_workers=0)
    assert files(dls.train)==['0.JPEG','1.JPEG']
    pictures(val_cat=1)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="The class 'cat' of"):
        warnings.simplefilter('ignore')
        ims.from_folder(path, n_workers=0)

def test_the_same_seed_the_same_batches(pictures):
    path = pictures(dog=8, cat=8)
    a,b = [ims.from_folder(path, valid_pct=.25, seed=3, size=(32,48), bs=5, n_workers=0, device='cpu') for _ in range(2)]
    assert (len(a.train_ds),len(a.valid_ds),a.device,a.path,len(a.train),a.train.n_workers) == (12,4,torch.device('cpu'),path,2,0)
    assert torch.equal(a.one_batch()[1], b.one_batch()[1]) and a.one_batch()[0].shape==(5,3,32,48)

def test_arguments_reach_their_place(pictures):
    path = pictures(train_dog=6, train_cat=7, val_dog=5)
    assert ims.from_folder(path, n_workers=0, batch_tfms=[], tfm=lambda x: x*0, bs=8).one_batch()[0].sum()==0
    loose = ims.from_folder(path, drop_last=False, shuffle=False, n_workers=0, bs=4, skip_bad=True)
    assert (len(loose.train),loose.train.shuffle,loose.valid.drop_last,loose.train.skip_bad) == (4,False,False,True)
    usual = ims.from_folder(path, num_workers=0, bs=4)
    assert (len(usual.train),len(usual.valid),usual.train.n_workers,usual.valid.n_workers,usual.train.shuffle,usual.valid.shuffle) == (3,2,0,0,True,False)
    with pytest.raises(TypeError): ims.from_folder(path, cache=True)
    assert ims.from_folder(path, n_workers=0, method='pad').train_ds.method=='pad'

def test_cached_batches_are_the_same(pictures, tmp_path):
    path = pictures(train_dog=6, train_cat=7, val_dog=5)
    kw = dict(n_workers=0, bs=4, seed=1, device='cpu', drop_last=False)
    want = [list(o) for o in ims.from_folder(path, **kw)]
    for cache in ('memory',tmp_path/'cache'):
        dls = ims.from_folder(path, cache=cache, **kw)
        for _ in range(2): dls.train.set_epoch(0); got = [list(o) for o in dls]
        assert all(torch.equal(a[0],b[0]) and torch.equal(a[1],b[1]) for x,y in zip(want, got) for a,b in zip(x, y))

# from names
def test_labels_from_names_and_paths(tmp_path):
    fns = [Path(o) for o in ('pets/x1/great_dane_1.jpg','pets/x2/pug_2.jpg','pets/x2/great_dane_3.jpg','pets/x1/pug_4.jpg')]*4
    kw = dict(seed=1, n_workers=0, valid_pct=.5)
    for pat in (r'^(.*)_\d+.jpg$',r'(.+)_\d'): assert ims.from_name_re(tmp_path, fns, pat, **kw).vocab==['great_dane','pug']
    assert ims.from_path_re(tmp_path, fns, r'/(x\d)/', **kw).vocab==['x1','x2']
    assert ims.from_name_func(tmp_path, fns, lambda o: o[0]=='g', **kw).vocab==[False,True]
    dls = ims.from_path_func(tmp_path, fns, parent_label, **kw)
    assert dls.vocab==['x1','x2'] and dls.path==tmp_path
    with pytest.raises(ValueError, match='finds no label in'): ims.from_name_re(tmp_path, fns, r'(x1)', **kw)

def test_lists(fns):
    halves = torch.arange(4),np.arange(4,8)
    for o in (torch.tensor([3,1]*4),np.array([3,1]*4)): assert ims.from_lists(fns, o, halves, n_workers=0).valid_ds.y.tolist()==[1,0,1,0]
    assert files(ims.from_lists(PackedPaths(fns), parent_label, ([1],[0]), n_workers=0).train)==[fns[1].name]
    for bad,kw,says in (([],{},'0 train and 0 validate'), (fns[:1],{},'Of 1 pictures, 1 train and 0 validate'), (fns,dict(valid_pct=0),'8 train and 0 validate')):
        with pytest.raises(ValueError, match=says): ims.from_lists(bad, parent_label, n_workers=0, **kw)
    with pytest.raises(ValueError, match='8 pictures but 1 labels'): ims.from_lists(fns, ['a'])
    with pytest.raises(ValueError, match="The class 'b'"): ims.from_lists(fns[:2], ['a','b'], ([0],[1]))

# from tables
four = dict(f=list('wxyz'), l=list('abab'))
def by_flags(*flags): return ims.from_df({**four, 'v':flags}, valid_col='v', n_workers=0)

@pytest.mark.parametrize('flags', ((0,0,1.,1.), (False,False,True,True), ('no','No','yes','valid'), ('train','0',' True','1.0'), list(np.array([0,0,1,1])>0)))
def test_who_validates(flags): assert files(by_flags(*flags).valid)==['y','z']

@pytest.mark.parametrize('flag', ('maybe',2,None,''))
def test_who_validates_cannot_be_read(flag):
    with pytest.raises(ValueError, match=f'Row 2 of the table has {flag!r} for whether it validates: write True'): by_flags(0,0,flag,1)

@pytest.mark.parametrize('flag', (0,1))
def test_nobody_validates_or_trains(flag):
    with pytest.raises(ValueError, match=f'Of 4 pictures, {4-4*flag} train and {4*flag} validate'): by_flags(*[flag]*4)

class NAType: "What pandas writes for a cell with nothing in it"
def test_tables():
    assert ims.from_df({'l':['a']*4, 'f':list('wxyz')}, fn_col='f', label_col='l', folder='sub', path='p', valid_pct=.5).train_ds.fns[0].parent==Path('p/sub')
    with pytest.raises(ValueError, match=r"There is no column 'no' in the table, whose columns are \['f', 'l'\]"): ims.from_df(four, label_col='no')
    for o in (float('nan'),None,NAType(),' '):
        with pytest.raises(ValueError, match='Row 1 of the table has no label.'): ims.from_df({**four, 'l':['a',o,'b','b']})
        with pytest.raises(ValueError, match='Row 0 of the table has no file.'): ims.from_df({**four, 'f':[o,'x','y','z']})
    numbered = ims.from_df(dict(f=[1,2,3], l=list('aab'), v=[0,1,0]), valid_col=-1, n_workers=0)
    assert files(numbered.train)==['1','3']
    class Frame(dict): # as pandas has it: columns, and brackets
        columns = property(lambda self: list(self.keys()))
    assert files(ims.from_df(Frame({**four, 'v':[0,0,1,1]}), valid_col='v', n_workers=0).train)==['w','x']

def test_pandas():
    pd = pytest.importorskip('pandas')
    df = pd.DataFrame({**four, 'v':[0,0,1,1]}, index=[5,6,7,8])
    assert files(ims.from_df(df, valid_col='v', n_workers=0).valid)==['y','z']

# from csv
@pytest.fixture
def csv_of(tmp_path):
    def _dls(text, **kwargs):
        (tmp_path/'labels.csv').write_text(text, encoding='utf-8')
        return ims.from_csv(tmp_path, n_workers=0, valid_pct=.5, **kwargs)
    return _dls

@pytest.mark.parametrize('text,kwargs', (
    ('\ufefff,l\n\na.jpg,x\n,\nb.jpg,y\nc.jpg,x\nd.jpg,y\n', dict(fn_col='f')),
    ('a.jpg;x\nb.jpg;y\nc.jpg;x\nd.jpg;y', dict(header=None, delimiter=';')),
    ('a title, so\nf,l\na.jpg,x\nb.jpg,y\nc.jpg,x\nd.jpg,y', dict(header=1, label_col='l'))))
def test_csv(csv_of, text, kwargs):
    dls = csv_of(text, seed=2, **kwargs)
    assert sorted(files(dls.train)+files(dls.valid))==['a.jpg','b.jpg','c.jpg','d.jpg'] and dls.vocab==['x','y']

def test_csv_says_who_validates(csv_of):
    dls = csv_of('f,l,v\na,x,no\nb,x,yes\n', valid_col='v', folder='sub')
    assert files(dls.valid)==['b'] and dls.train_ds.fns[0].parts[-2:]==('sub','a')
    with pytest.raises(ValueError, match="labels.csv, line 3 has 'maybe' for whether it validates"): csv_of('f,l,v\na,x,no\nb,x,maybe\n', valid_col='v')

@pytest.mark.parametrize('text,says', (
    ('', 'labels.csv has no rows: it is empty'), ('f,l\n', 'labels.csv has no rows below its header'),
    ('f,f\na,x\n', r'labels.csv, line 1: .*\[.f., .f.\]. At least two are needed, of different names'), ('f;l\na;x\n', r"Is the `delimiter` ','\?"),
    ('f,l\n\na,x\nb\n', r"labels.csv, line 4: \['b'\] does not fit the columns \['f', 'l'\]"),
    ('f,l\na,x\n\nb,\n', 'labels.csv, line 4 has no label.'), ('f,l\n,x\n', 'labels.csv, line 2 has no file.'),
    ('f,l\na,x\n'+'b'*10**6+',x\n', 'labels.csv, line 3: field larger than field limit')))
def test_what_is_said_of_a_csv_file(csv_of, text, says):
    with pytest.raises(ValueError, match=says): csv_of(text)

def test_a_csv_file_in_another_encoding(tmp_path):
    (tmp_path/'old.csv').write_bytes('f,l\na,Bär'.encode('latin-1'))
    with pytest.raises(ValueError, match='old.csv is not in UTF-8'): ims.from_csv(tmp_path, 'old.csv')
