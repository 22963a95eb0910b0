"Programs as users of fastai write them: each describes data, looks at them, trains a little, and asks for more"
import pytest
from scratchai.all import *

for k in [k for k in globals() if k.startswith('test')]: del globals()[k] # fastcore's, which pytest would run

@pytest.fixture(scope='module')
def path(home): return doodles(n_train=80, n_valid=20, size=48)

@pytest.fixture(params=['rows','pandas'])
def table(request):
    "Makes a table of rows: a list of dicts, or a `DataFrame` whose index does not count from 0"
    if request.param=='rows': return lambda rows: rows
    pd = pytest.importorskip('pandas')
    return lambda rows: pd.DataFrame(rows, index=range(100, 100+len(rows)))

def model(ni, nf): return nn.Sequential(nn.Conv2d(ni, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, nf))

class Pixels(Module):
    "As many numbers for each pixel"
    def __init__(self, nf): self.conv = nn.Conv2d(3, nf, 3, padding=1)
    def forward(self, x): return self.conv(x)

class Keep(Callback):
    "What the last training batch was"
    def after_loss(self):
        if self.training: self.last = [o.detach() if isinstance(o, Tensor) else o for o in (self.xb, self.y, self.pred, self.loss)]

def trains(dls, model, **kwargs):
    "One epoch, with the loss that the data say; what the last batch was"
    learn = Learner(dls, model, **{**dict(opt_func=SGD, lr=1e-3), **kwargs})
    was = [p.detach().clone() for p in model.parameters()]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=(k := Keep()))
    assert torch.isfinite(k.last[3]) and any(not torch.equal(a, b.cpu()) for a,b in zip(was, model.parameters())) and learn.recorder.values
    return NS(learn=learn, **dict(zip(('x','y','pred'), k.last)))

def titles(dl, **kwargs):
    "What `show_batch` writes above the pictures it draws"
    plt.close('all')
    dl.show_batch(**kwargs)
    return [o.get_title() for o in plt.gcf().axes if o.images]

# a class
def test_a_class_in_the_name(path):
    breeds = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(seed=42),
        get_y=using_attr(RegexLabeller(r'^(n\d+)_\d+.JPEG$'), 'name'), item_tfms=Resize(32), batch_tfms=Normalize.from_stats(*imagenet_stats))
    dls = breeds.dataloaders(path/'train', bs=16)
    x,y = dls.one_batch()
    assert (type(x),x.shape,x.dtype) == (TensorImage,(16,3,32,32),torch.float32) and (type(y),y.shape,y.dtype) == (TensorCategory,(16,),torch.int64)
    assert dls.vocab==sorted(class_names) and dls.c==get_c(dls)==10 and dls.vocab.o2i['n01440764']==0 and len(dls.vocab[y])==16
    assert (len(dls.train_ds),len(dls.valid_ds))==(64,16) and dls.valid_ds.items[0].suffix=='.JPEG' and x.mean().abs()<1.5
    assert len(t := titles(dls, max_n=4))==4 and set(t)<=set(class_names.values())
    assert len(set(titles(dls.valid, max_n=3, unique=True)))==1
    last = trains(dls, model(3, dls.c), metrics=accuracy)
    assert isinstance(dls.loss_func, CrossEntropyLossFlat) and dls.loss_func.decodes(last.pred).shape==last.pred.shape[:1]
    fns = get_image_files(path/'val')[:3]
    for items in (fns, [PILImage.create(o) for o in fns], [np.array(Image.open(o)) for o in fns]):
        b = first(dls.test_dl(items))
        assert len(b)==1 and b[0].shape==(3,3,32,32) and type(b[0]) is TensorImage
    x,y = first(dls.test_dl(fns, with_labels=True))
    assert [dls.vocab[i] for i in y]==[o.parent.name for o in fns] and torch.equal(x, b[0])
    pic,name = dls.valid.decode_batch((x,y), max_n=2)[0]
    assert name==fns[0].parent.name and str(name)==name and 0<=pic.min()<pic.max()<=1

def test_a_class_that_a_function_of_the_name_tells(path):
    def is_fish(x): return x[:9]=='n01440764'
    dls = ImageDataLoaders.from_name_func(path, get_image_files(path/'train'), valid_pct=0.2, seed=42, label_func=is_fish, item_tfms=Resize(24), bs=8, num_workers=2)
    assert dls.vocab==[False,True] and len(dls.valid_ds)==16 and set(titles(dls))<={'False','True'}
    trains(dls, model(3, 2), metrics=error_rate)
    by_lambda = ImageDataLoaders.from_name_func(path, get_image_files(path/'train'), lambda o: o[:9]=='n01440764', seed=42, item_tfms=Resize(24), bs=8, num_workers=2)
    assert len(list(by_lambda.valid))==2

def test_a_class_in_the_folder(path):
    dls = ImageDataLoaders.from_folder(path, valid='val', item_tfms=RandomResizedCrop(32, min_scale=0.35), batch_tfms=Normalize.from_stats(*imagenet_stats), bs=20)
    assert (len(dls.train),len(dls.valid))==(4,1)
    a,b = dls.train_ds[0][0].size,first(dls.valid)[0]
    assert a==(48,48) and torch.equal(b, first(dls.valid)[0]) and not torch.equal(dls.train[0][0], (dls.train.set_epoch(1), dls.train[0][0])[1])
    trains(dls, model(3, 10), metrics=[accuracy, top_k_accuracy])

def test_other_sizes_for_the_same_block(path):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=ImageGetter('train'), get_y=parent_label, splitter=FuncSplitter(lambda o: o.stem[-1]=='3'),
        item_tfms=Resize(40, ResizeMethod.Pad, pad_mode='zeros'))
    assert block.dataloaders(path, bs=4).one_batch()[0].shape==(4,3,40,40)
    assert block.new(item_tfms=Resize((16,24), method='squish'), batch_tfms=Normalize()).dataloaders(path, bs=4).one_batch()[0].shape==(4,3,16,24)
    learn = Learner(block.dataloaders(path, bs=4), model(3, 10))
    learn.dls = block.new(item_tfms=Resize(16)).dataloaders(path, bs=8)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=(k := Keep()))
    assert k.last[0][0].shape[-1]==16

def test_batches_of_greys(path, tmp_path):
    for s,o in (('training','train'),('testing','val')): (tmp_path/s).symlink_to(path/o)
    block = DataBlock((ImageBlock(cls=PILImageBW), CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter('training','testing'),
        get_y=parent_label, batch_tfms=Normalize())
    dls = block.dataloaders(tmp_path, bs=20)
    xb,yb = first(dls.valid)
    assert (type(xb),xb.shape,len(dls.train_ds),len(dls.valid_ds)) == (TensorImageBW,(20,1,48,48),80,20) and yb.max()<10
    assert abs(float(dls.one_batch()[0].mean()))<.3 and len(titles(dls))==9
    trains(dls, Sequential(ConvLayer(1, 4, stride=2), nn.Conv2d(4, 10, 3, stride=2), nn.AdaptiveAvgPool2d(1), Flatten()), metrics=accuracy)

# several classes
def rows_of(path): return [dict(fname=str(o.relative_to(path)), labels=f"{o.parent.name} {'odd' if i%2 else 'even'}", is_valid=i%4==0)
    for i,o in enumerate(get_image_files(path/'train'))]

def test_two_labels_at_once(path, table):
    df = table(rows_of(path))
    block = DataBlock(blocks=(ImageBlock, MultiCategoryBlock), splitter=ColSplitter(), get_x=ColReader('fname', pref=f'{path}/'),
        get_y=ColReader('labels', label_delim=' '), item_tfms=RandomResizedCrop(32, min_scale=0.35))
    dls = block.dataloaders(df, bs=10)
    x,y = dls.one_batch()
    assert (type(y),y.shape,y.dtype) == (TensorMultiCategory,(10,12),torch.float32) and (y.sum(1)==2).all() and dls.c==12
    assert dls.vocab==sorted([*class_names,'even','odd']) and (len(dls.train_ds),len(dls.valid_ds))==(60,20)
    assert all(';' in o for o in titles(dls, nrows=1, ncols=3)) and set(dls.valid.decode_batch(first(dls.valid))[0][1])=={'even','n01440764'}
    last = trains(dls, model(3, 12), metrics=partial(accuracy_multi, thresh=0.2))
    assert isinstance(dls.loss_func, BCEWithLogitsLossFlat) and 0<dls.loss_func.activation(last.pred).mean()<1
    names = dls.loss_func.decodes(last.pred)
    assert names.shape==last.pred.shape and names.dtype==torch.bool
    xb, = first(dls.test_dl(df[:3]))
    assert xb.shape==(3,3,32,32) and len(first(dls.test_dl(df[:3], with_labels=True)))==2

def test_a_data_block_that_grows(path, table):
    "A book's way: nothing, then what is input and what target, then blocks"
    df = table(rows_of(path))
    x,y = DataBlock().datasets(df).train[0]
    assert x['fname']==y['fname']
    def get_x(r): return path/r['fname']
    def get_y(r): return r['labels'].split(' ')
    dsets = DataBlock(get_x=get_x, get_y=get_y).datasets(df)
    assert dsets.train[0][0].parent.name==dsets.train[0][1][0] and len(dsets.valid)==16
    dsets = DataBlock(blocks=(ImageBlock, MultiCategoryBlock), get_x=get_x, get_y=get_y).datasets(df)
    pic,y = dsets.train[0]
    assert isinstance(pic, PILImage) and len(dsets.train.vocab[torch.where(y==1.)[0]])==2
    def splitter(df): return [i for i,r in enumerate(df) if not r['is_valid']],[i for i,r in enumerate(df) if r['is_valid']]
    def framed(df): return df.index[~df['is_valid']].tolist(),df.index[df['is_valid']].tolist()
    block = DataBlock(blocks=(ImageBlock, MultiCategoryBlock), splitter=splitter if isinstance(df, list) else framed, get_x=get_x, get_y=get_y, item_tfms=Resize(32))
    dsets = block.datasets(df)
    assert (len(dsets.train),len(dsets.valid))==(60,20) and all(bool(r['is_valid']) for r in (dsets.valid.items if isinstance(df, list) else dsets.valid.items.to_dict('records')))
    assert len(titles(block.dataloaders(df, bs=8), nrows=1, ncols=3))==3

def test_a_table_of_files_and_labels(path, tmp_path):
    pd = pytest.importorskip('pandas')
    df = pd.DataFrame(rows_of(path)).rename(columns=dict(fname='name'))
    dls = ImageDataLoaders.from_df(df, path, valid_col='is_valid', label_delim=' ', item_tfms=Resize(24), bs=6)
    assert dls.c==12 and len(dls.valid_ds)==20 and dls.one_batch()[1].shape==(6,12)
    df.to_csv(tmp_path/'labels.csv', index=False)
    (tmp_path/'train').symlink_to(path/'train')
    csv = ImageDataLoaders.from_csv(tmp_path, valid_col='is_valid', label_delim=' ', item_tfms=Resize(24), bs=6)
    assert csv.vocab==dls.vocab and all(torch.equal(p, q) for a,b in zip(csv.valid, dls.valid) for p,q in zip(a, b))
    ds = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('name', pref=path), get_y=ColReader('labels'), splitter=ColSplitter()).datasets(df)
    assert len(ds.vocab)==20 and ds.train[0][0].size==(48,48)

# points
def centre(fn): # x and y of an object in a picture of 48 pixels
    i = int(fn.stem[-2:])
    return tensor([8+i%30, 40-i%30]).float()

def test_a_point(path):
    biwi = DataBlock(blocks=(ImageBlock, PointBlock), get_items=get_image_files, get_y=centre, splitter=FuncSplitter(lambda o: o.parent.name=='n01440764'),
        batch_tfms=Normalize.from_stats(*imagenet_stats))
    dls = biwi.dataloaders(path/'train', bs=8)
    xb,yb = dls.one_batch()
    assert (type(yb[0]),yb.shape,yb.dtype) == (TensorPoint,(8,1,2),torch.float32) and yb.min()>-1 and yb.max()<1 and dls.c==2
    x,y = dls.valid.decode_batch(first(dls.valid))[0]
    assert torch.allclose(y[0], centre(dls.valid_ds.items[0]), atol=1e-4)
    plt.close('all')
    dls.show_batch(max_n=4)
    assert sum(len(o.collections) for o in plt.gcf().axes)==4
    last = trains(dls, nn.Sequential(model(3, 2), nn.Tanh()))
    assert isinstance(dls.loss_func, MSELossFlat) and last.pred.shape[1]==2
    assert len(first(dls.test_dl(get_image_files(path/'val')[:2])))==1

def test_a_point_stays_on_its_pixel(path, tmp_path):
    "A white dot, and its place, after a random crop"
    for i in range(12):
        im = Image.new('RGB', (60,40))
        im.paste((255,255,255), (10+i*3,20-i,13+i*3,23-i))
        im.save(tmp_path/f'{i}.png')
    dls = DataBlock((ImageBlock, PointBlock), get_items=get_image_files, get_y=lambda o: [11.5+int(o.stem)*3, 21.5-int(o.stem)],
        splitter=RandomSplitter(seed=1), item_tfms=[Resize(64), FlipItem()]).dataloaders(tmp_path, bs=9)
    for x,p in dls.train.decode_batch(dls.one_batch()):
        ys,xs = torch.where(x.mean(0)>.8)
        if len(xs): assert abs(xs.float().mean()+.5-p[0,0])<1.5 and abs(ys.float().mean()+.5-p[0,1])<1.5
        else: assert not ((p>1)&(p<63)).all()

def test_a_number(path):
    dls = DataBlock((ImageBlock, RegressionBlock), get_items=get_image_files, get_y=lambda o: float(o.stem[-2:])/100, splitter=RandomSplitter(seed=2)).dataloaders(path/'train', bs=8)
    assert dls.one_batch()[1].dtype==torch.float32 and dls.c==1 and type(dls.train.decode_batch(dls.one_batch())[0][1]) is float and all(len(o)==4 and float(o)<1 for o in titles(dls))
    trains(dls, model(3, 1))

# masks
def mask_of(path): return lambda o: path/f'masks/{o.parent.parent.name}/{o.parent.name}/{o.stem}.png'

def test_a_mask(path):
    fnames,codes = get_image_files(path, folders=['train','val']),np.array(['ground','object'])
    dls = SegmentationDataLoaders.from_label_func(path, bs=8, fnames=fnames, label_func=mask_of(path), codes=codes, values=[0,255], item_tfms=Resize(32), num_workers=2)
    x,y = dls.one_batch()
    assert (type(y),y.shape,y.dtype) == (TensorMask,(8,32,32),torch.int64) and set(y.unique().tolist())=={0,1} and dls.c==2 and dls.vocab==['ground','object']
    plt.close('all')
    dls.show_batch(max_n=2)
    assert [len(o.images) for o in plt.gcf().axes[:2]]==[2,2]
    last = trains(dls, Pixels(2))
    assert dls.loss_func.decodes(last.pred).shape==last.y.shape
    assert len(first(dls.test_dl(fnames[:2])))==1

def test_a_mask_in_a_block(path, tmp_path):
    (tmp_path/'codes.txt').write_text('ground\nobject\nedge')
    codes = (tmp_path/'codes.txt').read_text().split()
    for o in get_image_files(path/'masks/val'): Image.fromarray((np.array(Image.open(o))>0).astype(np.uint8)*2).save(tmp_path/o.name)
    camvid = DataBlock(blocks=(ImageBlock, MaskBlock(codes)), get_items=get_image_files, splitter=lambda o: ([i>4 for i in range(len(o))], [i<=4 for i in range(len(o))]),
        get_y=lambda o: tmp_path/f'{o.stem}.png', item_tfms=FlipItem(1.), batch_tfms=Normalize.from_stats(*imagenet_stats))
    dls = camvid.dataloaders(path/'val', bs=5)
    assert (len(dls.train_ds),len(dls.valid_ds),dls.c)==(15,5,3) and dls.valid_ds[0][1].size==(48,48)
    x,y = dls.valid.decode_batch(first(dls.valid))[0]
    assert y.shape==(48,48) and set(y.unique().tolist())=={0,2}
    def acc(inp, targ): return (inp.argmax(dim=1)==targ.squeeze(1)).float().mean()
    trains(dls, Pixels(3), metrics=acc, loss_func=CrossEntropyLossFlat(axis=1))

def test_codes_and_values(path):
    def masks(*args): return DataBlock((ImageBlock, MaskBlock(*args)), get_items=get_image_files, get_y=mask_of(path)).dataloaders(path/'val', bs=4, num_workers=0)
    with pytest.raises(ValueError, match=r"There are 3 codes .*'edge'.*, and 2 `values`"): masks(['ground','object','edge'], [0,255])
    with pytest.raises(Exception, match=r"mask has the values \[0, 255\], and the codes are 0 to 1 \['ground', 'object'\]"): masks(np.array(['ground','object'])).one_batch()
    assert masks(None, [0,255]).c==2

# transforms of one's own
class SiameseImage(fastuple):
    def show(self, ctx=None, **kwargs):
        img1,img2,same = self
        t1,t2 = [tensor(o).permute(2,0,1) if isinstance(o, Image.Image) else o for o in (img1,img2)]
        line = t1.new_zeros(t1.shape[0], t1.shape[1], 3)
        return show_image(torch.cat([t1,line,t2], dim=2), title=bool(same), ctx=ctx)

class SiameseTransform(Transform):
    def __init__(self, files, is_valid=False):
        self.files2 = groupby(files, parent_label)
        self.splits2 = {f: self.draw(f) for f in files} if is_valid else {}
    def encodes(self, f:Path):
        f2,same = self.splits2.get(f) or self.draw(f)
        return SiameseImage(PILImage.create(f), PILImage.create(f2), int(same))
    def draw(self, f):
        same = random.random()<0.5
        cls = parent_label(f) if same else random.choice([o for o in self.files2 if o!=parent_label(f)])
        return random.choice(self.files2[cls]),same

class Pair(Module):
    def __init__(self): self.body,self.head = model(3, 8),nn.Linear(16, 2)
    def forward(self, a, b): return self.head(torch.cat([self.body(a), self.body(b)], 1))

def test_pairs(path):
    files = get_image_files(path/'train')
    splits = RandomSplitter(seed=1)(files)
    tls = TfmdLists(files, SiameseTransform(files), splits=splits)
    assert isinstance(tls[0], SiameseImage) and tls.train[0][0].size==(48,48)
    assert tls.train[0].show().get_title() in ('True','False')
    dls = tls.dataloaders(after_item=[Resize(32), ToTensor], after_batch=[IntToFloatTensor, Normalize.from_stats(*imagenet_stats)], bs=8)
    a,b,y = dls.one_batch()
    assert a.shape==b.shape==(8,3,32,32) and type(b) is TensorImage and y.shape==(8,) and a.mean().abs()<1.5 and b.std()<2
    last = trains(DataLoaders(*dls.loaders), Pair(), loss_func=CrossEntropyLossFlat(), splitter=lambda m: [trainable_params(m.body), trainable_params(m.head)])
    assert len(last.x)==2 and len(last.learn.opt.param_lists)==2
    assert len(titles(dls, max_n=4))==4

def test_pairs_by_a_data_set_of_ones_own(path):
    files = get_image_files(path/'train')
    class Pairs:
        def __init__(self, files): self.files = files
        def __len__(self): return len(self.files)
        def __getitem__(self, i): return SiameseTransform(self.files).encodes(self.files[i])
    dls = DataLoaders.from_dsets(Pairs(files[:60]), Pairs(files[60:]), after_item=[ToTensor], after_batch=[IntToFloatTensor], bs=8, num_workers=0)
    assert len(dls.one_batch())==3 and (len(dls.train),len(dls.valid))==(7,3)
    trains(dls.cuda() if torch.cuda.is_available() else dls, Pair(), loss_func=CrossEntropyLossFlat())

def test_pairs_in_a_block(path):
    files = get_image_files(path/'train')
    def pairs(path): return [[f, files[(i*7)%len(files)], i%2] for i,f in enumerate(get_image_files(path))]
    class Two(fastuple):
        @classmethod
        def create(cls, fns): return cls(tuple(PILImage.create(f) for f in fns))
        def show(self, ctx=None, **kwargs): return show_image(torch.cat(list(self), dim=2), ctx=ctx, **kwargs)
    def TwoBlock(): return TransformBlock(type_tfms=Two.create, batch_tfms=IntToFloatTensor)
    block = DataBlock(blocks=(TwoBlock, CategoryBlock), get_items=pairs, get_x=lambda o: o[:2], get_y=lambda o: o[2], splitter=RandomSplitter(seed=3), item_tfms=Resize(24))
    dls = block.dataloaders(path/'train', bs=8)
    x,y = dls.one_batch()
    assert isinstance(x, Two) and x[0].shape==x[1].shape==(8,3,24,24) and dls.vocab==[0,1] and len(titles(dls, max_n=4))==4

# the middle level
def test_datasets_of_pipelines(path):
    d = {k: v.split()[-1] for k,v in class_names.items()}
    fnames = get_image_files(path, folders=['train','val'])
    splits = GrandparentSplitter(valid_name='val')(fnames)
    get_y = Pipeline([parent_label, d.__getitem__])
    dsets = Datasets(fnames, [[PILImage.create], [parent_label, d.__getitem__, Categorize(vocab=list(d.values()))]], splits=splits)
    assert dsets.vocab==sorted(d.values()) or dsets.vocab==list(d.values())
    x,y = dsets[0]
    assert isinstance(x, PILImage) and dsets.decode((x,y))[1]==get_y(fnames[0])=='tench' and dsets.n_inp==1
    assert dsets.show(dsets.train[3]).get_title()==get_y(dsets.train.items[3])
    tfms = [[PILImage.create], [get_y, Categorize]]
    dsets = Datasets(fnames, tfms, splits=splits)
    dls = dsets.dataloaders(after_item=[ToTensor, RandomResizedCrop(32, min_scale=0.35), FlipItem(0.5)], after_batch=[Normalize.from_stats(*imagenet_stats), IntToFloatTensor], bs=16, num_workers=2)
    assert dls.vocab==sorted(d.values()) and dls.one_batch()[0].shape==(16,3,32,32) and dls.one_batch()[0].min()<0 and len(dls.valid)==2
    assert set(titles(dls))<=set(d.values())
    trains(dls, model(3, 10), metrics=accuracy)
    assert str(dsets.tls[1].tfms).startswith('Pipeline: parent_label')

def test_a_transform_of_ones_own_comes_and_goes(path):
    class Grey(Transform):
        order,split_idx = 20,0
        def encodes(self, x:TensorImage): return x.mean(1, keepdim=True).expand_as(x)
    class Shift(DisplayedTransform):
        "Learns from the training labels what it subtracts"
        def __init__(self, by=None): self.by = by
        def setups(self, items): self.by = min(items)
        def encodes(self, x:int): return x-self.by
        def decodes(self, x:Tensor|int): return int(x)+self.by
    block = DataBlock((ImageBlock, TransformBlock(type_tfms=[lambda o: 5+int(o.stem[-2:]), Shift])), get_items=get_image_files, splitter=EndSplitter(), batch_tfms=Grey)
    dls = block.dataloaders(path/'train', bs=8)
    (a,y),(b,_) = dls.one_batch(),first(dls.valid)
    assert torch.equal(a[:,0], a[:,2]) and not torch.equal(b[:,0], b[:,2]) and y.dtype==torch.int64
    assert dls.train_ds.tls[1].tfms[-1].by==5+min(int(o.stem[-2:]) for o in dls.train_ds.items) and repr(Shift(3))=="Shift -- {'by': 3}"
    assert dls.valid.decode_batch(first(dls.valid))[0][1]==5+int(dls.valid_ds.items[0].stem[-2:])

def test_from_picture_to_picture(path, tmp_path):
    for o in get_image_files(path/'train'): resize_image(o.relative_to(path), tmp_path, path, max_size=24)
    block = DataBlock(blocks=(ImageBlock, ImageBlock), get_items=get_image_files, get_y=lambda o: path/o.relative_to(tmp_path), splitter=RandomSplitter(seed=1),
        item_tfms=[Resize(32), FlipItem()], batch_tfms=Normalize.from_stats(*imagenet_stats))
    dls = block.dataloaders(tmp_path, bs=8)
    x,y = dls.one_batch()
    assert x.shape==y.shape==(8,3,32,32) and type(x) is type(y) is TensorImage and y.min()<-1 and (x-y).abs().mean()<.5
    x,y = dls.train.decode((x,y))
    assert 0<=y.min()<y.max()<=1
    plt.close('all')
    dls.show_batch(max_n=3)
    trains(dls, nn.Conv2d(3, 3, 3, padding=1), loss_func=MSELossFlat())

def test_classes_in_an_array(path):
    "Text of numpy's becomes plain text"
    vocab = np.array(sorted(class_names, reverse=True))
    dls = DataBlock((ImageBlock, CategoryBlock(vocab=vocab, sort=False)), get_items=get_image_files, get_y=parent_label).dataloaders(path/'train', bs=4, num_workers=0)
    assert dls.vocab==vocab.tolist() and {type(o) for o in dls.vocab}=={str} and set(titles(dls))<=set(class_names.values())

def test_three_parts(path):
    "Two inputs and a target, by getters and by lists"
    for kw in (dict(getters=[noop, lambda o: o.stem, parent_label]), dict(get_x=[noop, lambda o: o.stem], get_y=parent_label)):
        block = DataBlock(blocks=(ImageBlock, TransformBlock, CategoryBlock), n_inp=2, get_items=get_image_files, splitter=IndexSplitter(range(0, 80, 8)), **kw)
        dls = block.dataloaders(path/'train', bs=4)
        x,stem,y = dls.one_batch()
        assert len(stem)==4 and stem[0][:9]==dls.vocab[y[0]] and dls.n_inp==2 and len(first(dls.test_dl(get_image_files(path/'val')[:2])))==2

# pictures from elsewhere
def test_an_archive(path, tmp_path, monkeypatch):
    monkeypatch.setenv('SCRATCHAI_HOME', str(tmp_path/'home'))
    url = Path(shutil.make_archive(tmp_path/'drawings', 'gztar', path/'val', '.')).as_uri()
    path = untar_data(url)
    Path.BASE_PATH = path
    try: assert path.name=='drawings' and repr(path.ls().sorted()[0]) in ("Path('.untar_data')","Path('n01440764')") and len(get_image_files(path))==20
    finally: Path.BASE_PATH = None
    trains(ImageDataLoaders.from_folder(path, valid_pct=0.25, seed=1, item_tfms=Resize(16), batch_tfms=Normalize.from_stats(*cifar_stats), bs=5), model(3, 10))

def test_a_list_of_addresses(path, tmp_path):
    for i,o in enumerate(class_names):
        fns = get_image_files(path/'train'/o)[:4]
        if i<2: download_images(tmp_path/o, urls=[f.as_uri() for f in fns])
    (tmp_path/'n01440764/page.jpg').write_text('<html>')
    failed = verify_images(get_image_files(tmp_path), progress=False)
    failed.map(Path.unlink)
    assert len(failed)==1 and 'UnidentifiedImageError' in failed[0].cause and len(get_image_files(tmp_path))==8
    for o in tmp_path.ls(): assert resize_images(o, max_size=24, dest=o)==[]
    bears = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(valid_pct=0.25, seed=42), get_y=parent_label)
    dls = bears.dataloaders(tmp_path, bs=3)
    assert dls.one_batch()[0].shape==(3,3,24,24)
    trains(dls, model(3, 2))

# a batch, and what is asked of it
def test_summary_tells_what_happens(path, capsys):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(seed=1), item_tfms=Resize(32))
    block.summary(path/'train')
    out = capsys.readouterr().out
    assert all(o in out for o in ('80 items','PILImage 48x48','PILImage 32x32','TensorImage 3x32x32','Categorize','TensorImage 4x3x32x32'))

def test_a_mistake_is_a_sentence_from_training_too(path, tmp_path, capsys):
    shutil.copytree(path/'train', tmp_path/'t')
    bad = get_image_files(tmp_path/'t')[3]
    bad.write_bytes(b'nothing')
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(seed=1), item_tfms=Resize(32))
    dls = block.dataloaders(tmp_path/'t', bs=8, num_workers=0, device='cpu')
    with pytest.raises(Exception, match=bad.name): trains(dls, model(3, 10))
    verify_images(get_image_files(tmp_path/'t'), progress=False).map(Path.unlink)
    trains(block.dataloaders(tmp_path/'t', bs=8), model(3, 10))
    assert not bad.exists()
    Image.new('RGB', (30,40)).save(tmp_path/'t/n01440764/odd.png')
    with pytest.raises(Exception, match='Resize'): trains(block.new(item_tfms=[]).dataloaders(tmp_path/'t', bs=80, num_workers=0), model(3, 10))
