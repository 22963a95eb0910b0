"Blocks and the three questions: every argument, every kind of target, and what is said of bad answers"
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np,pytest,torch
from PIL import Image
from fastcore.all import L,noop
from scratchai.block import *
from scratchai.crops import Resize
from scratchai.data import *
from scratchai.losses import *
from scratchai.splitters import *
from scratchai.types import *
from scratchai.transform import *
from scratchai.transform import test_set as _ # a function of the library, and no test

plain = lambda x: x.as_subclass(torch.Tensor)
two = (ImageBlock, CategoryBlock)
kw = dict(num_workers=0, device='cpu')
def halves(items): return range(0, len(items), 2),range(1, len(items), 2)
def label(o): return 'cat' if int(Path(o).stem)%4<2 else 'dog'
def mask_of(o): return Path(o).parent/'masks'/f'{Path(o).stem}.png'

@pytest.fixture
def fns(tmp_path):
    "8 pictures of noise, 32 by 24, and masks whose left half is 255"
    (tmp_path/'masks').mkdir()
    m = np.zeros((24,32), np.uint8)
    m[:,:16] = 255
    for i in range(8):
        Image.effect_noise((32,24), 60).convert('RGB').save(tmp_path/f'{i}.png')
        Image.fromarray(m).save(tmp_path/f'masks/{i}.png')
    return get_image_files(tmp_path, recurse=False)

def block(blocks=two, **kwargs): return DataBlock(blocks, **{**dict(get_y=label, splitter=halves, item_tfms=Resize(16)), **kwargs})
def batch(blocks, fns, **kwargs): return block(blocks, **kwargs).dataloaders(fns, bs=4, seed=1, **kw).one_batch()

# blocks
def test_a_block_brings_lists_a_loader_and_its_arguments(fns):
    class Mine(TfmdDL): pass
    def red(o): return float(Image.open(o).getpixel((0,0))[0])
    mine = TransformBlock(type_tfms=[red, torch.tensor], item_tfms=lambda o: o, batch_tfms=lambda x: x*2, dl_type=Mine, dls_kwargs=dict(bs=3))
    assert [type(getattr(mine, k)) for k in ('type_tfms','item_tfms','batch_tfms')]==[L]*3
    dls = DataBlock((ImageBlock, mine), splitter=halves).dataloaders(fns, shuffle=False, **kw)
    assert type(dls.train) is type(dls.valid) is Mine and dls.bs==3
    assert dls.one_batch()[1].tolist()==[2*red(o) for o in fns[::2][:3]]
    assert DataBlock((ImageBlock, mine), splitter=halves).dataloaders(fns, bs=2, **kw).bs==2
    assert type(DataBlock((ImageBlock, mine), TfmdDL, splitter=halves).dataloaders(fns, **kw).train) is TfmdDL

def test_pictures_in_grey(fns): assert batch((ImageBlock(PILImageBW), CategoryBlock), fns)[0].shape==(4,1,16,16)

def test_classes(fns):
    assert block().datasets(fns).vocab==['cat','dog'] and block().dataloaders(fns, **kw).c==2
    def vocab(**kwargs): return block((ImageBlock, CategoryBlock(**kwargs)), get_y=lambda o: 'dog' if label(o)=='cat' else 'cat').datasets(fns).vocab
    assert vocab(sort=False)==['dog','cat'] and vocab(vocab=['cat','dog','ant'])==['ant','cat','dog'] and vocab(vocab=['dog','ant','cat'], sort=False)==['dog','ant','cat']
    known = block((ImageBlock, CategoryBlock(['cat'], add_na=True))).datasets(fns)
    assert known.vocab==['#na#','cat'] and [int(y) for _,y in known]==[1,1,0,0]*2
    assert isinstance(block().dataloaders(fns, **kw).loss_func, CrossEntropyLossFlat)

def test_several_classes(fns):
    labels = {o: [label(o),str(i)] if i<2 else [] if i<4 else ['cat'] for i,o in enumerate(fns)}
    def dsets(**kwargs): return block((ImageBlock, MultiCategoryBlock(**kwargs)), get_y=labels.get, splitter=lambda o: ([0,1,2],[4])).datasets(fns)
    d = dsets()
    assert d.vocab==['0','1','cat'] and d[1][1].tolist()==[0,1,1] and d[2][1].tolist()==[0,0,0] and d.c==3
    assert type(d[1][1]) is TensorMultiCategory and d.decode(d[1])[1]==['1','cat'] and isinstance(d.loss_func, BCEWithLogitsLossFlat)
    assert dsets(vocab=['cat','1','0']).vocab==['cat','1','0'] and dsets(vocab=['cat'], add_na=True)[1][1].tolist()==[1,1]
    with pytest.raises(TransformError, match="MultiCategorize failed on item 0 .*'0' is not among the classes"): dsets(vocab=['cat','1'])
    with pytest.raises(TransformError, match="MultiCategorize failed on item 0 .*Several labels are a list, and not 'a b'"): block((ImageBlock, MultiCategoryBlock), get_y=lambda o: 'a b').datasets(fns)
    with pytest.raises(TransformError, match='MultiCategorize failed on item 2 .*Several labels are a list, and not None'): block((ImageBlock, MultiCategoryBlock), get_y=lambda o: None if Path(o).stem=='2' else ['a']).datasets(fns)
    pair = block((ImageBlock, MultiCategoryBlock), get_y=lambda o: ('a',label(o))).datasets(fns)
    assert pair.vocab==['a','cat','dog'] and pair[0][1].tolist()==[1,1,0] and pair.decode(pair[0])[1]==['a','cat']

def test_several_classes_that_are_encoded(fns):
    enc = block((ImageBlock, MultiCategoryBlock(encoded=True, vocab=['b','a'])), get_y=lambda o: [0,1]).datasets(fns)
    assert enc[0][1].tolist()==[0.,1.] and enc[0][1].dtype==torch.float32 and enc.decode(enc[0])[1]==['a'] and enc.c==2
    assert isinstance(enc.loss_func, BCEWithLogitsLossFlat)
    with pytest.raises(ValueError, match='Encoded labels need a `vocab`'): block((ImageBlock, MultiCategoryBlock(encoded=True)), get_y=lambda o: [0,1]).datasets(fns)
    assert OneHotEncode(c=4)(TensorMultiCategory([1,3])).tolist()==[0,1,0,1]

def test_numbers(fns):
    def dls(b=RegressionBlock, y=lambda o: int(Path(o).stem), **kwargs): return block((ImageBlock, b), get_y=y, **kwargs).dataloaders(fns, bs=4, shuffle=False, **kw)
    one,three = dls(),dls(y=lambda o: [1,2,3.5])
    assert (one.c,three.c,one.one_batch()[1].tolist(),three.one_batch()[1][0].tolist()) == (1,3,[0.,2.,4.,6.],[1,2,3.5])
    assert one.one_batch()[1].dtype==torch.float32 and isinstance(one.loss_func, MSELossFlat) and dls(RegressionBlock(n_out=7)).c==7
    for bad in (float('nan'),[1.,np.nan]):
        with pytest.raises(TransformError, match='RegressionSetup failed on item 0 .*nan.* is no number to learn'): dls(y=lambda o: bad)
    for b in (RegressionBlock, RegressionBlock(1)):
        for bad in (None,'x',{}):
            with pytest.raises(TransformError, match=r'RegressionSetup failed on item 7 \(.*7.png.* is no number to learn'): dls(b, y=lambda o: bad if Path(o).stem=='7' else 1.)
    assert dls(y=lambda o: (1,Path(o).stem)).one_batch()[1].tolist()==[[1,0],[1,2],[1,4],[1,6]] # a tuple, and text

def test_points(fns):
    dls = block((ImageBlock, PointBlock), get_y=lambda o: [[0,0],[32,24],[16,6]], item_tfms=Resize(16, method='squish')).dataloaders(fns, bs=2, **kw)
    x,y = dls.one_batch()
    assert type(y) is TensorPoint and torch.allclose(y[0], torch.tensor([[-1.,-1],[1,1],[0,-.5]])) and dls.c==6
    assert torch.allclose(dls.train.decode_batch((x,y))[0][1], torch.tensor([[0.,0],[16,16],[8,4]])) and isinstance(dls.loss_func, MSELossFlat)
    with pytest.raises(TransformError, match=r'TensorPoint.create failed on item 0 \(.*0.png.*Points are pairs `x` and `y`, not 3 numbers'): block((ImageBlock, PointBlock), get_y=lambda o: [1,2,3]).datasets(fns)
    for p in ([3,4],(3,4),((3,4),),np.array([3,4]),torch.tensor([3,4])):
        d = block((ImageBlock, PointBlock), get_y=lambda o: p).datasets(fns)
        assert d[0][1].tolist()==[[3,4]] and d.c==2 and not d.tls[1].tfms[1].random
    with pytest.raises(TransformError, match=r'RegressionSetup failed on item 3 \(.*3.png.* is no number'): block((ImageBlock, PointBlock), get_y=lambda o: [np.nan if Path(o).stem=='3' else 1, 2]).datasets(fns)

def test_masks(fns):
    dls = block((ImageBlock, MaskBlock(np.array(['ground','thing']), values=[0,255])), get_y=mask_of, item_tfms=Resize(12)).dataloaders(fns, bs=2, **kw)
    y = dls.one_batch()[1]
    assert type(y) is TensorMask and y.dtype==torch.int64 and y.shape==(2,12,12) and y.unique().tolist()==[0,1]
    assert (list(dls.vocab),dls.c,dls.loss_func.axis) == (['ground','thing'],2,1)
    turned = batch((ImageBlock, MaskBlock(['thing','ground'], values=[255,0])), fns, get_y=mask_of)
    assert turned[1][0,0,0]==0
    no_codes = block((ImageBlock, MaskBlock), get_y=lambda o: np.zeros((24,32), np.uint8)+7).dataloaders(fns, bs=2, **kw)
    assert no_codes.one_batch()[1].unique().tolist()==[7] and no_codes.vocab is None
    assert block((ImageBlock, MaskBlock(values=[0,255])), get_y=mask_of).dataloaders(fns, **kw).c==2
    with pytest.raises(ValueError, match=r'1 codes .*, and 2 `values`: give one for each'): MaskBlock(['a'], values=[0,255])
    halved = batch((ImageBlock, MaskBlock(['a','b'])), fns, get_y=mask_of, batch_tfms=IntToFloatTensor(div_mask=255))
    assert halved[1].unique().tolist()==[0,1]

@pytest.mark.parametrize('n_workers', (0,1))
def test_masks_whose_values_are_no_codes(fns, n_workers):
    def dls(**kwargs): return block((ImageBlock, MaskBlock(**kwargs)), get_y=mask_of).dataloaders(fns, bs=2, num_workers=n_workers)
    for kwargs,says in ((dict(codes=['a','b']),r"values \[0, 255\], and the codes are 0 to 1 .'a', 'b'.*MaskBlock\(codes, values=\[0,255\]\)"), (dict(codes=['a','b'], values=[0,1]),r'values \[0, 255\], and'), ({},r'values \[0, 255\]')):
        with dls(**kwargs) as d, pytest.raises(ItemError, match=rf'Item \d \(.*png\) cannot be read: .*AddMaskCodes .*{says}'): list(d.train)
    with pytest.raises(TransformError, match='AddMaskCodes failed on a PILMask'): block((ImageBlock, MaskBlock(['a','b'])), get_y=mask_of).summary(fns)

def test_no_boxes():
    for b in (BBoxBlock, BBoxLblBlock):
        with pytest.raises(NotImplementedError, match='There are no blocks for boxes. .* for `PointBlock`'): DataBlock((ImageBlock, b))

def test_messages_name_a_few_of_many_classes(fns):
    many = [f'c{i:03}' for i in range(1000)]
    for b,y in ((CategoryBlock,'x'),(MultiCategoryBlock,['x'])):
        with pytest.raises(TransformError, match=r"item 0 .*'x' is not among the classes: .*c000.*(…|[.]{3})") as e: block((ImageBlock, b(vocab=many)), get_y=lambda o: y).datasets(fns)
        assert len(str(e.value))<400
    for make in (lambda: MaskBlock(many, values=[0,1]), lambda: block((ImageBlock, MaskBlock(many[:200])), get_y=mask_of).datasets(fns)[0]):
        with pytest.raises((ValueError,TransformError), match="c000.*…") as e: make()
        assert len(str(e.value))<400

# the three questions
def test_without_blocks():
    rows = [dict(f=f'{i}.png', l='a b') for i in range(10)]
    d = DataBlock().datasets(rows)
    assert len(d.train)==8 and len(d.valid)==2 and d.train[0][0]==d.train[0][1] and d.train[0][0] in rows
    d = DataBlock(get_x=lambda r: r['f'], get_y=lambda r: r['l'].split()).datasets(rows)
    assert d.train[0][0][-4:]=='.png' and d.train[0][1]==['a','b']

def test_blocks_as_class_and_instance(fns):
    for b in (two, [ImageBlock(), CategoryBlock()], (ImageBlock, CategoryBlock())): assert batch(b, fns)[0].shape==(4,3,16,16)
    one = DataBlock(ImageBlock, splitter=halves, item_tfms=Resize(8))
    assert one.n_inp==1 and one.dataloaders(fns, bs=2, **kw).one_batch()[0].shape==(2,3,8,8)
    with pytest.raises(TypeError, match="is no block. Blocks are `ImageBlock`"): DataBlock((ImageBlock, PILImage.create(np.zeros((2,2,3), np.uint8))))
    with pytest.raises(TypeError, match="get_item'"): DataBlock(two, get_item=noop)

def test_columns_instead_of_items(fns):
    labels = list('aabb')*2
    d = DataBlock.from_columns(two, get_items=lambda path: (get_image_files(path, recurse=False),labels), splitter=halves, item_tfms=Resize(8))
    assert d.datasets(fns[0].parent).vocab==['a','b'] and d.dataloaders(fns[0].parent, bs=2, **kw).one_batch()[0].shape==(2,3,8,8)
    swapped = DataBlock.from_columns(two, getters=[ItemGetter(1), ItemGetter(0)], splitter=halves).datasets((labels, fns))
    assert swapped.valid.items[0]==('a',fns[1]) and swapped[2][1]==1
    assert DataBlock.from_columns(splitter=halves).datasets(([1,2],[3,4]))[1]==(2,4)

def test_which_function_is_for_which_block(fns):
    three = (ImageBlock, ImageBlock, CategoryBlock)
    d = DataBlock(three, get_x=[noop, mask_of], get_y=label, splitter=halves).datasets(fns)
    assert d.n_inp==2 and d[0][1].getpixel((0,0))==(255,)*3 and d.vocab==['cat','dog']
    d = DataBlock(three, n_inp=1, get_y=[mask_of, label], splitter=halves)
    assert d.n_inp==1 and d.datasets(fns)[0][1].getpixel((0,0))==(255,)*3
    d = DataBlock(three, getters=[noop, mask_of, label], splitter=halves).datasets(fns)
    assert d[0][1].getpixel((0,0))==(255,)*3 and d.vocab==['cat','dog']
    piped = DataBlock(two, get_x=Pipeline([Path, noop]), get_y=Pipeline([label, str.upper]), splitter=halves).datasets(fns)
    assert piped.vocab==['CAT','DOG']
    for kwargs,says in ((dict(get_x=[noop, noop]),'`get_x` has 2 functions for 1 of 2 blocks .`n_inp` is 1.: give one for each. Several for the same block are a `Pipeline`'),
                        (dict(get_y=[noop, noop]),'`get_y` has 2 functions for 1 of 2'), (dict(getters=[noop]),'`getters` has 1 functions for 2 of 2')):
        with pytest.raises(ValueError, match=says): DataBlock(two, **kwargs)

def test_items_that_are_tuples_reach_a_getter_whole(fns):
    items = [(o,label(o)) for o in fns]
    d = DataBlock(two, get_x=itemgetter(0), get_y=lambda o: o[1], splitter=halves, item_tfms=Resize(8))
    assert d.datasets(items).vocab==['cat','dog'] and d.dataloaders(items, bs=2, **kw).one_batch()[0].shape==(2,3,8,8)

def test_sources(fns):
    for source,get_items in ((fns,None), (list(fns),None), (fns[0].parent,partial(get_image_files, recurse=False)), (iter(fns),None), (np.array(list(map(str, fns))),None), ('x',lambda o: iter(fns))):
        d = block(get_items=get_items).datasets(source)
        assert len(d)==8 and d.vocab==['cat','dog'] and len(d.valid.items)==4 and Path(d.valid.items[0]).name=='1.png'
    with pytest.raises(TypeError, match='is one path: say with `get_items` which items'): block().datasets(fns[0].parent)
    with pytest.raises(ValueError, match=r'no items in \[\]'): block().datasets([])
    with pytest.raises(ValueError, match='no items in .*masks'): block(get_items=partial(get_image_files, folders=['none'])).datasets(fns[0].parent/'masks')

@pytest.mark.parametrize('what', ([[0,2,4],[1]], (range(0, 6, 2),[1]), (np.array([0,2,4]),np.array([1])), (torch.tensor([0,2,4]),torch.tensor([1])), (L(0,2,4),L(1)),
    [[i in (0,2,4) for i in range(8)],[i==1 for i in range(8)]], (np.arange(8)%8==0,np.arange(8)==1), (torch.arange(8)<1,torch.arange(8)==1)))
def test_what_a_splitter_may_return(fns, what):
    d = block(splitter=lambda o: what).datasets(fns)
    assert Path(d.train.items[0]).name=='0.png' and [Path(o).name for o in d.valid.items]==['1.png']

@pytest.mark.parametrize('what,says', (
    (([0,1],[]),'Of 8 items, 2 train and 0 validate: look at what splits them'), (([],[0]),'Of 8 items, none are for training'), (([0,1],),'Of 8 items, 2 train and 0 validate'),
    (([True]*8,[False]*8),'8 train and 0 validate'), (([0,1],[1]),'Item 1 is in split 0 and in split 1'), (([0],[8]),'Split 1 names item 8, but there are 8 items'),
    (([True,False],[False,True]),'mask of 2 flags, but there are 8 items'), ((torch.tensor([True,False]),torch.tensor([False,True])),'mask of 2 flags, but there are 8 items'), ((['a'],['b']),'Splits are positions or masks, and not '), (5,'Splits are positions or masks, and not 5'), ((range(8),[False]*7),'mask of 7 flags')))
@pytest.mark.parametrize('ask', ('datasets','dataloaders','summary'))
def test_splitters_that_will_not_do(fns, what, says, ask):
    with pytest.raises((ValueError,TypeError), match=says): getattr(block(splitter=lambda o: what), ask)(fns)

def test_the_default_splitter(fns): assert [len(block(splitter=None).datasets(fns).subset(i)) for i in (0,1)]==[7,1]

def test_a_table(fns):
    pd = pytest.importorskip('pandas')
    df = pd.DataFrame(dict(f=list(map(str, fns)), l=['x y','x','y','x']*2, is_valid=[False,True]*4), index=range(10, 18))
    def by_rows(df): return df.index[~df['is_valid']].tolist(),df.index[df['is_valid']].tolist()
    for splitter in (by_rows, ColSplitter(), lambda o: (~o.is_valid,o.is_valid)):
        d = DataBlock((ImageBlock, MultiCategoryBlock), get_x=ColReader('f'), get_y=ColReader('l', label_delim=' '), splitter=splitter, item_tfms=Resize(8))
        assert [Path(o).name for o in d.datasets(df).valid.items.f]==['1.png','3.png','5.png','7.png'] and d.datasets(df).vocab==['x','y']
    dls = d.dataloaders(df, bs=2, **kw)
    assert dls.test_dl(df).one_batch()[0].shape[1:]==(3,8,8) and len(dls.test_dl(df, with_labels=True).one_batch())==2
    assert len(DataBlock().datasets(df).train)==7

# what comes out
def test_transforms_are_merged_and_made(fns):
    b = DataBlock((ImageBlock, ImageBlock, CategoryBlock), item_tfms=[Resize(8), noop, Resize(12)], batch_tfms=Normalize.from_stats(*imagenet_stats))
    assert [type(o).__name__ for o in b.item_tfms]==['ToTensor','Resize','function'] and b.item_tfms[1].size==(12,12)
    assert [type(o).__name__ for o in b.batch_tfms]==['IntToFloatTensor','Normalize']
    fs = [lambda o: o, lambda o: o, Transform(noop), Transform(noop)]
    assert len(DataBlock(two, item_tfms=fs).item_tfms)==5
    assert DataBlock(two, batch_tfms=IntToFloatTensor(div=1)).batch_tfms[0].div==1

def test_new_keeps_the_answers(fns):
    a = block()
    b = a.new(item_tfms=Resize(8), batch_tfms=lambda x: x*0)
    x,y = b.dataloaders(fns, bs=2, **kw).one_batch()
    assert x.shape==(2,3,8,8) and x.sum()==0 and a.item_tfms[-1].size==(16,16) and len(a.batch_tfms)==1

def test_a_block_can_be_used_for_other_data(fns):
    b = block((ImageBlock, CategoryBlock), batch_tfms=Normalize())
    assert b.datasets(fns).vocab==['cat','dog']
    b.dataloaders(fns, bs=2, **kw)
    assert b.datasets(fns[:2]+fns[4:6]).vocab==['cat'] and b.batch_tfms[-1].mean is None

def test_arguments_of_the_loaders(fns, capsys):
    dls = block().dataloaders(fns, path='here', bs=2, val_bs=3, num_workers=0, device='cpu', seed=3, shuffle=False, drop_last=True, val_shuffle=True, skip_bad=True)
    assert (dls.path,dls.bs,dls.valid.bs,dls.train.n_workers,dls.device.type,dls.train.seed,dls.train.shuffle,dls.train.drop_last,dls.valid.shuffle,dls.train.skip_bad) == (Path('here'),2,3,0,'cpu',3,False,True,True,True)
    assert (dls.valid.split_idx,dls.train.split_idx)==(1,0) and not capsys.readouterr().out
    block().dataloaders(fns, verbose=True, **kw)
    assert '8 items of' in (out := capsys.readouterr().out) and '4 train and 4 validate' in out
    with pytest.raises(TypeError, match='colour'): block().dataloaders(fns, colour=1, **kw)

def test_the_road_by_hand_to_the_last_bit(fns):
    ds = [Dataset(fns[i::2], label, size=16, vocab=['cat','dog']) for i in (0,1)]
    hand = DataLoaders(DataLoader(ds[0], bs=2, shuffle=True, drop_last=True, seed=5, n_workers=0), DataLoader(ds[1], bs=2, seed=5, n_workers=0), device='cpu', batch_tfms=[ToFloat(), Normalize(*imagenet_stats)])
    ours = block(item_tfms=Resize(16, method='squish'), batch_tfms=Normalize.from_stats(*imagenet_stats)).dataloaders(fns, bs=2, seed=5, **kw)
    for _ in range(2):
        for a,b in zip([*hand.train, *hand.valid], [*ours.train, *ours.valid], strict=True): assert torch.equal(a[0], plain(b[0])) and torch.equal(a[1], plain(b[1]))

def test_loaders_seed_for_items_only_where_something_may_draw(fns):
    f,r = ImageDataLoaders,dict(size=8, **kw)
    own = f.from_lists('.', fns, list('ab')*4, **r),f.from_name_re('.', fns, r'(p)ng', **r),f.from_df(dict(f=[str(o) for o in fns], l=list('ab')*4), '', **r)
    assert not any(o.train.ds.random for o in own) and f.from_name_func('.', fns, lambda o: o[-3:], **r).train.ds.random

def test_lambdas_reach_the_workers(fns):
    n = 3
    with block(get_y=lambda o: str(int(Path(o).stem)%n)).dataloaders(fns, bs=2, num_workers=2, seed=1) as dls:
        got = torch.cat([y for _,y in dls.valid])
        assert [dls.vocab[int(i)] for i in got]==['1','0','2','1']

def test_further_items(fns):
    dls = block().dataloaders(fns, bs=2, **kw)
    want = plain(dls.valid.one_batch()[0])
    for items in (fns[1::2], [PILImage.create(o) for o in fns[1::2]], [np.array(Image.open(o)) for o in fns[1::2]], list(map(str, fns[1::2]))):
        x, = dls.test_dl(items, bs=2).one_batch()
        assert torch.equal(plain(x), want)
    assert dls.test_dl(fns, with_labels=True).one_batch()[1].shape==(2,)
    for one in (fns[0], str(fns[0]), PILImage.create(fns[0])):
        with pytest.raises(TypeError, match='`test_dl` takes a list of items, and this is one: .*'): dls.test_dl(one)
    dls = ImageDataLoaders.from_lists('.', fns, list('abab')*2, size=16, bs=2, **kw)
    assert dls.test_dl(fns[:3], bs=3).one_batch()[0].shape==(3,3,16,16)

def test_one_picture_shown_many_times(fns):
    dls = block().dataloaders(fns, bs=4, **kw)
    shown = dls.show_batch(unique=True, max_n=3, show=False)
    assert len(shown)==3 and len({str(o[1]) for o in shown})==1

# further transforms
def plus(n, order=0):
    def add(x:TensorImage): return (x.int()+n).byte() if x.dtype==torch.uint8 else x+n
    add.order = order
    return add

@pytest.mark.parametrize('n_workers', (0,1))
@pytest.mark.parametrize('event,order', (('after_item',6),('after_batch',50)))
def test_further_transforms_for_some_loaders(fns, n_workers, event, order):
    whole = block(item_tfms=Resize(16, method='squish')) # which draws nothing
    with whole.dataloaders(fns, bs=2, seed=1, shuffle=False, num_workers=n_workers, device='cpu') as dls:
        was = [plain(dl.one_batch()[0]) for dl in dls]
        for dl in dls: list(dl) # workers that know of nothing are at work
        step = 1/255 if event=='after_item' else 1
        for loaders,n in (('train',(1,0)), (1,(1,1)), (['train','valid'],(2,2)), (None,(3,3)), ([0],(4,3))):
            assert dls.add_tfms([plus(1, order)], event, loaders) is None
            for dl,old,k in zip(dls, was, n):
                new = plain(next(iter(dl))[0])
                assert ((new-old)[old<.9]-k*step).abs().max()<1e-5 and torch.equal(plain(dl.one_batch()[0]), new)

def test_further_transforms_are_put_in_order(fns):
    dls = block().dataloaders(fns, bs=2, **kw)
    dls.add_tfms(Normalize.from_stats(*imagenet_stats, cuda=False), 'after_batch')
    dls.add_tfms(plus(0, 20), 'after_batch')
    dls.add_tfms(Resize(8), 'after_item', 'valid')
    assert [getattr(o, 'name', type(o).__name__) for o in dls.after_batch]==['IntToFloatTensor','add','Normalize']
    assert [dl.one_batch()[0].shape[-1] for dl in dls]==[16,8] and dls.test_dl(fns[:2]).one_batch()[0].shape[-1]==8
    dls.add_tfms(lambda items: items[:1], 'before_batch', 'train')
    assert [len(dl.one_batch()[1]) for dl in dls]==[1,2]
    assert len(block().dataloaders(fns, **kw).after_batch)==1 # the block has learnt nothing

def test_further_transforms_of_other_loaders(fns):
    hand = DataLoaders(DataLoader(Dataset(fns, label, size=16), bs=2, n_workers=0), [], device='cpu', batch_tfms=[Normalize(*imagenet_stats)])
    hand.add_tfms(ToFloat(), 'after_batch')
    assert [type(o) for o in hand.after_batch]==[ToFloat,Normalize] and hand.one_batch()[0].shape==(2,3,16,16)
    with pytest.raises(AttributeError, match='after_item'): hand.add_tfms(noop, 'after_item')
    with pytest.raises(AttributeError, match='after_batch'): DataLoaders(torch.utils.data.DataLoader([1.])).add_tfms(noop, 'after_batch')
    cached = block(item_tfms=Resize(16, method='squish')).dataloaders(fns, bs=2, cache='memory', **kw)
    with pytest.raises(ValueError, match='A cache keeps items after their transforms: give these as `item_tfms`'): cached.add_tfms(plus(1, 6), 'after_item')
    cached.add_tfms(plus(1, 50), 'after_batch')
    assert cached.one_batch()[0].min()>=1

def test_classes_show_themselves(fns):
    with pytest.raises(NotImplementedError, match=r'No `typedispatch` here: a class shows itself by `show\(self, ctx\)`'):
        @typedispatch
        def show_batch(x:PILImage, y, samples): pass
    class Mine(str):
        def show(self, ctx=None, **kwargs):
            ctx.set_title(f'mine: {self}')
            return ctx
    from matplotlib import pyplot as plt
    DataBlock((ImageBlock, TransformBlock), get_y=lambda o: Mine('x'), splitter=halves, item_tfms=Resize(8)).dataloaders(fns, bs=2, **kw).show_batch()
    assert plt.gca().get_title()=='mine: x'

# summary
def test_summary_says_what_happens(fns, capsys):
    block().summary(fns, bs=3)
    out = [o.split(None, 1) for o in capsys.readouterr().out.splitlines()]
    assert [o[0] for o in out]==['8','4','Input','PILImage.create','Target','label','Categorize','Item','Resize','ToTensor','Batch','IntToFloatTensor']
    assert 'PILImage 24x32' in out[3][1] and out[5][1]=="'cat'" and out[9][1][:-len(', TensorCategory(0))')].startswith('(TensorImage 3x16x16 uint8, ') and 'TensorImage 3x3x16x16 float32, 0.' in out[11][1]

def test_summary_can_show_the_batch(fns):
    import matplotlib.pyplot as plt
    block().summary(fns, show_batch=True, max_n=2, nrows=1)
    assert len(plt.gcf().axes)==2

def test_summary_of_other_parts(fns, capsys):
    parts = dict(c=torch.zeros(6, dtype=torch.complex64), b=torch.ones(6)>0, n=torch.tensor(2), a=np.zeros((2,3)), t='x'*99)
    for o in parts.values(): DataBlock(splitter=halves, get_y=lambda _: o).summary(fns[:2], bs=1)
    out = capsys.readouterr().out
    for o in ('Tensor 6 complex64\n','Tensor 6 bool, 1 to 1\n','tensor(2)\n','ndarray 2x3 float64\n','…\n'): assert o in out, o

def bad_label(o):
    if Path(o).stem=='5': raise KeyError('no such label')
    return label(o)
class Half(Transform):
    "A transform that fails"
    order = 2
    def encodes(self, o:PILImage): raise ZeroDivisionError('half of nothing')

@pytest.mark.parametrize('change,says', (
    (dict(get_y=bad_label),r"bad_label failed on item 5 \(.*5.png.*KeyError: 'no such label'"),
    (dict(get_y=lambda o: None if Path(o).stem=='6' else 'cat'),r"Categorize failed on item \d \(.*6.png.*None is not among"),
    (dict(get_y=lambda o: float('nan') if Path(o).stem=='6' else 'cat'),r"Categorize failed on item \d \(.*6.png.*nan is not among the classes"),
    (dict(blocks=(ImageBlock, CategoryBlock(['cat']))),r"Categorize failed on item \d \(.*2.png.*'dog' is not among the classes"),
    (dict(blocks=(ImageBlock, MaskBlock(['a'])), get_y=label),"PILMask.create failed on .*a str: .*No such file"),
    (dict(item_tfms=[Resize(8), Half]),r"Half failed on.*PILImage.*ZeroDivisionError: half of nothing"),
    (dict(item_tfms=None),'Resize')))
@pytest.mark.parametrize('n_workers', ('summary',0,1))
def test_faults_from_summary_and_from_training(fns, change, says, n_workers, capsys):
    Image.new('RGB', (20,20)).save(fns[2])
    def ask():
        b = block(**change)
        if n_workers=='summary': return b.summary(fns)
        with b.dataloaders(fns, bs=4, num_workers=n_workers) as dls: list(dls.train)
    with pytest.raises((TransformError,LoaderError,ValueError,RuntimeError), match=says): ask()

# the cache
def test_cached_batches_are_the_same(fns, tmp_path):
    def dls(cache=None, **kwargs): return block(item_tfms=Resize(16, method='squish'), **kwargs).dataloaders(fns, bs=3, seed=1, drop_last=False, cache=cache, **kw)
    rows = [dict(f=str(o), l=label(o)) for o in fns]
    for cache in ('memory',tmp_path/'c'):
        a,b = dls(),dls(cache)
        table = DataBlock(two, get_x=itemgetter('f'), get_y=itemgetter('l'), splitter=halves, item_tfms=Resize(16, method='squish')).dataloaders(rows, bs=3, seed=1, drop_last=False, cache=cache, **kw)
        assert isinstance(b.train.ds, CachedItems) and type(b.train.ds.fns[0]) is type(fns[0]) and table.train.ds.fns[0]==str(fns[0])
        for _ in range(3):
            for one in (b,table):
                a.train.set_epoch(0), one.train.set_epoch(0)
                for p,q in zip([*a.train, *a.valid], [*one.train, *one.valid], strict=True):
                    assert type(p[0]) is type(q[0]) and torch.equal(plain(p[0]), plain(q[0])) and torch.equal(p[1], q[1])
        assert b.train.ds.in_memory and b.train.ds.__getitems__ and not b.train.ds.random
    assert len(list((tmp_path/'c').glob('*.cache')))==2 # the same files, decoded alike, whatever the items are
    grey = dls('memory', blocks=(ImageBlock(PILImageBW), CategoryBlock))
    for _ in range(2): assert [type(x) for x,_ in grey.valid]==[TensorImageBW]*2

def test_what_is_decoded_anew_in_every_epoch_is_not_cached(fns):
    with pytest.raises(ValueError, match="`cache=` keeps what the item transforms give, but Resize .* draws anew"): block().dataloaders(fns, cache='memory', **kw)
    with pytest.raises(ValueError, match='`cache=` keeps one picture an item, and its labels, not .*TensorMask'):
        block((ImageBlock, MaskBlock(values=[0,255], codes=['a','b'])), get_y=mask_of, item_tfms=Resize(8, method='squish')).dataloaders(fns, cache='memory', **kw)

def test_what_is_from_no_file_is_not_cached(fns):
    ims = [np.array(Image.open(o)) for o in fns]
    for get_x in (None, lambda o: o):
        with pytest.raises(ValueError, match='`cache=` is for pictures from files'): block(get_x=get_x, get_y=lambda o: 'a', item_tfms=Resize(8, method='squish')).dataloaders(ims, cache='memory', **kw)

# factories that test_factories.py does not have
def test_factories_choose_the_block(fns):
    lists = partial(ImageDataLoaders.from_lists, '.', fns, size=8, bs=2, seed=1, **kw)
    assert isinstance(lists([['a'],['b']]*4).loss_func, BCEWithLogitsLossFlat) and isinstance(lists([.5]*8).loss_func, MSELossFlat)
    assert isinstance(lists([1]*8, y_block=RegressionBlock).loss_func, MSELossFlat) and lists([1,2]*4).vocab==[1,2]
    table = dict(f=[o.name for o in fns], a=list('abab')*2, b=list('cdcd')*2)
    d = ImageDataLoaders.from_df(table, fns[0].parent, label_col=['a','b'], size=8, bs=2, **kw)
    assert d.vocab==['a','b','c','d'] and isinstance(d.loss_func, BCEWithLogitsLossFlat)
    d = ImageDataLoaders.from_df(dict(f=table['f'], n=range(8)), fns[0].parent, y_block=RegressionBlock, size=8, bs=2, **kw)
    assert d.one_batch()[1].dtype==torch.float32
    own = ImageDataLoaders.from_dblock(block(), fns, path='p', bs=2, **kw)
    assert own.path==Path('p') and own.bs==2

def test_masks_by_a_factory(fns):
    d = SegmentationDataLoaders.from_label_func('p', fns, mask_of, .25, 1, ['a','b'], Resize(8), values=[0,255], bs=2, **kw)
    assert d.one_batch()[1].shape==(2,8,8) and d.vocab==['a','b'] and len(d.valid_ds)==2 and d.path==Path('p')
