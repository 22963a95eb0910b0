"From folders, names, lists and tables to `DataLoaders`: every way, and what is said of mistakes"
import os,warnings
from functools import partial
from pathlib import Path

import numpy as np,pytest,torch
from PIL import Image
from scratchai.data import *
from scratchai.block import ImageDataLoaders
from scratchai.crops import Resize
from scratchai.types import PILImageBW,TransformError

ims = ImageDataLoaders
kw = dict(n_workers=0, size=16, device='cpu')
def files(dl): return [Path(o[0] if isinstance(o, tuple) else o).name for o in dl.dataset.items]
def labels(dl): return [dl.vocab[int(dl.dataset[i][1])] for i in range(len(dl.dataset))]
def reds(dl): return [dl.dataset[i][0].getpixel((0,0))[0] for i in range(len(dl.dataset))]
def same(a, b): return all(torch.equal(p, q) for x,y in zip(a, b, strict=True) for p,q in zip(x, y, strict=True))

@pytest.fixture
def fns(pictures):
    "8 pictures of two classes"
    return get_image_files(pictures(dog=4, cat=4))

@pytest.fixture
def noise(tmp_path):
    "12 pictures of noise in Imagenette's layout"
    for i in range(12):
        d = tmp_path/f"noise/{'train' if i<8 else 'val'}/{'cat' if i%2 else 'dog'}"
        d.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40,30), 60).convert('RGB').save(d/f'{i}.png')
    return tmp_path/'noise'

# from_folder
def test_deeper_folders_belong_to_their_class(pictures):
    path = pictures(train_dog=2, train_dog_2023=2, train_dog_2024_may=1, train_cat_a=3, val_dog_2024=1, val_cat=2)
    dls = ims.from_folder(path, bs=2, **kw)
    assert dls.vocab==['cat','dog'] and dls.c==2 and labels(dls.train)==['cat']*3+['dog']*5 and labels(dls.valid)==['cat']*2+['dog']
    random = ims.from_folder(path/'train', valid_pct=.5, seed=1, **kw)
    assert random.vocab==['cat','dog'] and len(random.train_ds)==len(random.valid_ds)==4
    assert sorted(labels(random.train)+labels(random.valid))==['cat']*3+['dog']*5

def test_valid_pct_of_a_folder_that_is_split_already(pictures):
    path = pictures(train_dog=4, train_cat=4, val_dog=2, masks_dog=5)
    dls = ims.from_folder(path, valid_pct=.2, seed=1, **kw)
    assert dls.vocab==['cat','dog'] and len(dls.train_ds)+len(dls.valid_ds)==10
    assert ims.from_folder(pictures('modes', train=3, boat=3), valid_pct=.5, seed=1, **kw).vocab==['boat','train'] # a class

def test_val_and_valid(pictures):
    for have,asked in (('val',{}),('val',dict(valid='valid')),('valid',dict(valid='val')),('valid',{})):
        assert len(ims.from_folder(pictures(have, train_dog=2, **{f'{have}_dog':1}), **asked, **kw).valid_ds)==1
    both = pictures('both', train_dog=2, val_dog=1, valid_dog=2)
    assert [len(ims.from_folder(both, valid=o, **kw).valid_ds) for o in ('val','valid')]==[1,2]
    assert len(ims.from_folder(both, 'valid', 'train', **kw).valid_ds)==2

def test_folders_that_will_not_do(pictures, tmp_path):
    path = pictures(train_dog=2, val_dog=1, other_dog=1)
    with pytest.raises(ValueError, match='o pictures to validate with are in .*/test/<class>/; .* has other, train, val'): ims.from_folder(path, valid='test')
    with pytest.raises(ValueError, match='o pictures to train with are in .*/train/<class>/; .* has no folders at all'): ims.from_folder(pictures('flat', x=1)/'x')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='o pictures to train with are in .*/empty/<class>/'): ims.from_folder(tmp_path/'empty', valid_pct=.2)
    Image.new('RGB', (4,4)).save(path/'train/cover.png')
    with pytest.warns(UserWarning, match='directly in .*train have no class'): dls = ims.from_folder(path, **kw)
    assert files(dls.train)==['0.JPEG','1.JPEG']
    pictures(val_cat=1)
    with warnings.catch_warnings(), pytest.raises(TransformError, match="item 2 .*The label 'cat' is not among the classes"):
        warnings.simplefilter('ignore')
        ims.from_folder(path, **kw)

def test_the_road_by_hand_to_the_last_bit(noise):
    for seed in (1,2):
        hand = folder_dls(noise, size=(24,32), bs=3, seed=seed, n_workers=0, device='cpu')
        dls = ims.from_folder(noise, size=(24,32), bs=3, seed=seed, num_workers=0, device='cpu', batch_tfms=Normalize.from_stats(*imagenet_stats))
        for _ in range(2): assert same(hand.train, dls.train) and same(hand.valid, dls.valid) # two epochs
        assert (len(dls.train),dls.path,dls.device,dls.vocab) == (len(hand.train),hand.path,hand.device,hand.vocab)

def test_the_same_seed_the_same_batches(pictures):
    path = pictures(dog=8, cat=8)
    a,b,c = [ims.from_folder(path, valid_pct=.25, seed=o, size=(32,48), bs=5, n_workers=0, device='cpu') for o in (3,3,4)]
    assert (len(a.train_ds),len(a.valid_ds),a.device,a.path,len(a.train),a.train.n_workers) == (12,4,torch.device('cpu'),path,2,0)
    assert same(a.train, b.train) and a.one_batch()[0].shape==(5,3,32,48) and files(a.valid)==files(b.valid)!=files(c.valid)

def test_arguments_reach_their_place(pictures, noise):
    path = pictures(train_dog=6, train_cat=7, val_dog=5)
    def first_of(path=path, **kwargs): return ims.from_folder(path, bs=4, seed=1, n_workers=0, device='cpu', **kwargs).one_batch()[0]
    loose = ims.from_folder(path, drop_last=False, shuffle=False, bs=4, val_bs=3, skip_bad=True, **kw)
    assert (len(loose.train),len(loose.valid),loose.train.shuffle,loose.valid.drop_last,loose.train.skip_bad) == (4,2,False,False,True)
    usual = ims.from_folder(path, num_workers=0, bs=4, size=16)
    assert (len(usual.train),len(usual.valid),usual.train.n_workers,usual.valid.n_workers,usual.train.shuffle,usual.valid.shuffle) == (3,2,0,0,True,False)
    assert first_of(size=16).max()<=1 and first_of(size=16, batch_tfms=Normalize.from_stats(*imagenet_stats)).max()>1
    assert first_of(size=16, img_cls=PILImageBW).shape==(4,1,16,16)
    assert ims.from_folder(path, vocab=['dog','cat','ant'], **kw).vocab==['ant','cat','dog'] # sorted, as in fastai
    pad,squish = [first_of(noise, size=16, method=o) for o in ('pad','squish')]
    assert torch.equal(pad, first_of(noise, item_tfms=Resize(16, method='pad'))) and torch.equal(squish, first_of(noise, size=16)) and not torch.equal(pad, squish)
    with pytest.raises(TypeError): ims.from_folder(path, colour=1, **kw)

def test_cached_batches_are_the_same(noise, tmp_path):
    args = dict(bs=3, seed=1, drop_last=False, **kw)
    want = [list(o) for o in ims.from_folder(noise, **args)]
    for cache in ('memory',tmp_path/'cache'):
        dls = ims.from_folder(noise, cache=cache, **args)
        for _ in range(2):
            dls.train.set_epoch(0)
            assert all(map(same, want, map(list, dls)))
    assert [o for o in (tmp_path/'cache').iterdir() if o.suffix=='.cache']
    with pytest.raises((TypeError,ValueError)): ims.from_folder(noise, cache=True, **kw)

# from names
def test_labels_from_names_and_paths(tmp_path):
    fns = [tmp_path/o for o in ('pets/x1/great_dane_1.jpg','pets/x2/pug_2.jpg','pets/x2/great_dane_3.jpg','pets/x1/pug_4.jpg')]
    for o in fns:
        o.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8,8)).save(o)
    fns,args = fns*4,dict(seed=1, valid_pct=.5, **kw)
    for pat in (r'^(.*)_\d+.jpg$',r'(.+)_\d'): assert ims.from_name_re(tmp_path, fns, pat, **args).vocab==['great_dane','pug']
    assert ims.from_path_re(tmp_path, fns, r'/(x\d)/', **args).vocab==['x1','x2']
    assert list(ims.from_name_func(tmp_path, fns, lambda o: o[0]=='g', **args).vocab)==[False,True]
    dls = ims.from_path_func(tmp_path, fns, parent_label, **args)
    assert dls.vocab==['x1','x2'] and dls.path==tmp_path and len(dls.valid_ds)==8
    with pytest.raises(TransformError, match='finds no label in'): ims.from_name_re(tmp_path, fns, r'(x1)', **args)

# from lists
def test_lists(fns, tmp_path):
    halves = torch.arange(4),np.arange(4,8)
    for o in (torch.tensor([3,1]*4),np.array([3,1]*4)): assert labels(ims.from_lists(tmp_path, fns, o, splits=halves, **kw).valid)==[3,1,3,1]
    dls = ims.from_lists(tmp_path, PackedPaths(fns), list('aaab')*2, splits=([1,3],[0]), **kw)
    assert files(dls.train)==[fns[1].name,fns[3].name] and dls.vocab==['a','b'] and dls.path==tmp_path
    for some,args,says in (([],{},'no items'), (fns[:1],{},'Of 1 .*1 train and 0 validate'), (fns,dict(valid_pct=0),'8 train and 0 validate')):
        with pytest.raises(ValueError, match=says): ims.from_lists(tmp_path, some, list('a'*len(some)), **args, **kw)
    with pytest.raises(ValueError, match='8 pictures but 1 labels'): ims.from_lists(tmp_path, fns, ['a'])
    with pytest.raises(TransformError, match="The label 'b' is not"): ims.from_lists(tmp_path, fns[:2], ['a','b'], splits=([0],[1]), **kw)

# from tables
@pytest.fixture
def table(tmp_path):
    "Four pictures with reds of 10, 20, 30 and 40, their names and their labels"
    (tmp_path/'sub').mkdir()
    for i,o in enumerate('wxyz'):
        for d in (tmp_path,tmp_path/'sub'): Image.new('RGB', (8,8), (10*i+10+(d!=tmp_path),0,0)).save(d/f'{o}.png')
    return dict(f=[f'{o}.png' for o in 'wxyz'], l=list('abab'))

@pytest.fixture
def from_df(tmp_path): return partial(ims.from_df, path=tmp_path, seed=2, valid_pct=.5, **kw)

@pytest.mark.parametrize('flags', ((0,0,1.,1.), (False,False,True,True), ('no','No','yes','valid'), ('train','0',' True','1.0'), list(np.array([0,0,1,1])>0)))
def test_who_validates(table, from_df, flags): assert reds(from_df({**table, 'v':flags}, valid_col='v').valid)==[30,40]

@pytest.mark.parametrize('flag', ('maybe',2,None,''))
def test_who_validates_cannot_be_read(table, from_df, flag):
    with pytest.raises(ValueError, match=f"Row 2 of the table has {flag!r} in column 'v' for whether it validates: write True"): from_df({**table, 'v':[0,0,flag,1]}, valid_col='v')

@pytest.mark.parametrize('flag', (0,1))
def test_nobody_validates_or_trains(table, from_df, flag):
    with pytest.raises(ValueError, match=f"None of 4 items is to {('validate','train')[flag]}: column 'v' holds"): from_df({**table, 'v':[flag]*4}, valid_col='v')

class NAType: "What pandas writes for a cell with nothing in it"
def test_tables(table, from_df, tmp_path):
    turned = from_df({k:table[k] for k in 'lf'}, fn_col='f', label_col='l', folder='sub')
    assert sorted(reds(turned.train)+reds(turned.valid))==[11,21,31,41] and turned.path==tmp_path and turned.vocab==['a','b']
    bare = {**table, 'f':list('wxyz')}
    assert sorted(reds((dls := from_df(bare, suff='.png')).train)+reds(dls.valid))==[10,20,30,40]
    with pytest.raises(ValueError, match=r"There is no column 'no' in the table, whose columns are \['f', 'l'\]"): from_df(table, label_col='no')
    for o in (float('nan'),None,NAType(),' '):
        with pytest.raises(ValueError, match='Row 1 of the table has no label.'): from_df({**table, 'l':['a',o,'b','b']})
        with pytest.raises(ValueError, match='Row 0 of the table has no file.'): from_df({**table, 'f':[o,'x','y','z']})
    assert reds(from_df({**table, 'v':[0,1,0,0]}, valid_col=-1).valid)==[20]

def test_several_labels(table, from_df):
    dls = from_df({**table, 'l':['a b','b','c a','c']}, label_delim=' ', valid_pct=.25)
    assert list(dls.vocab)==['a','b','c'] and dls.one_batch()[1].shape[1]==3 and dls.c==3

def test_pandas(table, from_df):
    pd = pytest.importorskip('pandas')
    df = pd.DataFrame({**table, 'v':[0,0,1,1]}, index=[5,6,7,8])
    assert reds(from_df(df, valid_col='v').valid)==[30,40]

# from csv
@pytest.fixture
def csv_of(table, tmp_path):
    def _dls(text, **kwargs):
        (tmp_path/'labels.csv').write_text(text, encoding='utf-8')
        return ims.from_csv(tmp_path, **{**dict(valid_pct=.5, seed=2), **kwargs, **kw})
    return _dls

@pytest.mark.parametrize('text,kwargs', (
    ('\ufefff,l\n\nw.png,x\n,\nx.png,y\ny.png,x\nz.png,y\n', dict(fn_col='f')),
    ('w.png;x\nx.png;y\ny.png;x\nz.png;y', dict(header=None, delimiter=';')),
    ('a title, so\nf,l\nw.png,x\nx.png,y\ny.png,x\nz.png,y', dict(header=1, label_col='l'))))
def test_csv(csv_of, text, kwargs):
    dls = csv_of(text, **kwargs)
    assert sorted(reds(dls.train)+reds(dls.valid))==[10,20,30,40] and dls.vocab==['x','y']

def test_csv_says_who_validates(csv_of):
    dls = csv_of('f,l,v\nw.png,x,no\nx.png,x,yes\n', valid_col='v', folder='sub')
    assert reds(dls.valid)==[21] and reds(dls.train)==[11]
    with pytest.raises(ValueError, match="labels.csv, line 3 has 'maybe' in column 'v' for whether it validates"): csv_of('f,l,v\na,x,no\nb,x,maybe\n', valid_col='v')

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
