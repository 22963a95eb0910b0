"Labels and splits from tables, lists and files: rows of every kind, and a sentence for what does not fit"
import pickle
from collections import namedtuple
from unittest.mock import patch

import numpy as np,pytest,torch
from fastcore.all import L,Path

from scratchai.files import *
from scratchai.splitters import *

items = list('abcdefghij')
rows = L(dict(fname=f'{o}.jpg', labels=o*(i%3), is_valid=str(i>6), fold=i%4) for i,o in enumerate(items))
Row = namedtuple('Row', 'fname labels is_valid fold')
Indexed = namedtuple('Pandas', 'Index fname labels is_valid fold')

class Frame:
    "As much of a DataFrame as splitters ask for"
    def __init__(self, rows): self.rows,self.iloc = list(rows),list(rows)
    def __len__(self): return len(self.rows)
    def __iter__(self): return iter(self.rows[0]) # names of the columns, as pandas has it
    def __getitem__(self, k): return np.array([o[k] for o in self.rows], dtype=object)
    def keys(self): return self.rows[0].keys()

def halves(f, o=items): return tuple(list(h) for h in f(o))
def test_kinds():
    "Two lists of positions, whole numbers, whatever the items are in; all splitters can be sent to another process"
    for f in (IndexSplitter([1]), MaskSplitter([i==1 for i in range(10)]), FuncSplitter('b'.__eq__), EndSplitter(), RandomSubsetSplitter(.5, .5, 1), TrainTestSplitter()):
        for o in (items, L(items), tuple(items), np.array(items)):
            res = f(o)
            assert [type(h) for h in res]==[L,L] and all(type(i) is int for h in res for i in h) and sorted(res[0]+res[1])==list(range(10))
    for f in (ColReader('fname'), ColSplitter(), IndexSplitter([1]), EndSplitter(), FuncSplitter(str.isupper)): assert type(pickle.loads(pickle.dumps(f))) is type(f)

@pytest.mark.parametrize('row', [rows[4], Row(*rows[4].values()), Indexed(99, *rows[4].values()), tuple(rows[4].values())])
def test_rows(row):
    named = not type(row) is tuple
    assert [ColReader(i)(row) for i in (0,-1)]==['e.jpg',0]
    if named: assert (ColReader('fname')(row), ColReader(['fold','fname'])(row))==('e.jpg', [0,'e.jpg'])
    for c in ('label',4,-5):
        with pytest.raises(ValueError, match=f"no column {c!r} in the table, whose columns are {'.*fname' if named else '.0, 1'}"): ColReader(c)(row)

def test_col_reader(tmp_path):
    r = rows[2]
    assert ColReader('fname', pref='x/', suff='.png')(r)=='x/c.jpg.png' and ColReader('fname', pref=tmp_path)(r)==str(tmp_path/'c.jpg')
    assert ColReader('fold')(r)==2 and ColReader('fold', suff='')(r)==2 and ColReader('fold', suff='!')(r)=='2!'
    assert type(ColReader(['fold','fold'])(r)) is L
    for text,want in {'a b':['a','b'], ' a,b  c':['a,b','c'], '':[], 'a':['a']}.items(): assert ColReader('x', label_delim=' ')(dict(x=text))==want
    assert ColReader('x', label_delim=', ')(dict(x='a, b'))==['a','b'] and ColReader('x', label_delim=';')(dict(x=3))==['3']
    assert ColReader('x', pref='p', suff='s', label_delim=';')(dict(x='a;b'))==['a','b']
    assert repr(ColReader('x', label_delim=' '))=="ColReader(cols=['x'], pref='', suff='', label_delim=' ')"
    class NAType: pass
    for o in (float('nan'), np.float32('nan'), None, NAType()):
        for kw in ({}, dict(label_delim=' ')):
            with pytest.raises(ValueError, match=r"The row of 'z.jpg' has nothing in its column 'x' \(.*\): leave it out"): ColReader('x', **kw)(dict(fname='z.jpg', x=o))
    with pytest.raises(ValueError, match="nothing in its column 'x' .''."): ColReader('x')(dict(fname='z.jpg', x=''))
    for o in (Path('a.jpg'), 'a.jpg', 3):
        with pytest.raises(TypeError, match="is no row of a table with a 'x'"): ColReader('x')(o)

def test_index():
    assert halves(IndexSplitter([9,-9,9]))==([0,2,3,4,5,6,7,8],[9,1])
    for o in (np.array([1,2]), torch.tensor([1,2]), range(1,3), L(1,2)): assert halves(IndexSplitter(o))[1]==[1,2]
    assert halves(IndexSplitter([]))==(list(range(10)),[])
    for i in (10,-11):
        with pytest.raises(IndexError, match=f'No item {i} is among 10 items'): IndexSplitter([1,i])(items)
    with pytest.raises(ValueError, match='All 10 items are to validate'): IndexSplitter(range(10))(items)
    with pytest.raises(TypeError, match='Flags are for `MaskSplitter`'): IndexSplitter(np.array([True,False]))

def test_mask():
    m = [i in (2,5) for i in range(10)]
    for o in (m, np.array(m), torch.tensor(m), [int(k) for k in m]): assert halves(MaskSplitter(o))==([0,1,3,4,6,7,8,9],[2,5])
    with pytest.raises(ValueError, match='The mask has 10 flags for 3 items'): MaskSplitter(m)([1,2,3])
    for flag,half in ((False,'validate'),(True,'train')):
        with pytest.raises(ValueError, match=f'None of 10 items is to {half}: the mask says so'): MaskSplitter([flag]*10)(items)

def test_func():
    assert halves(FuncSplitter(lambda o: o>'h'))==(list(range(8)),[8,9])
    assert halves(FuncSplitter(lambda o: o['fold']==3), Frame(rows))==halves(FuncSplitter(lambda o: o['fold']==3), rows)==([0,1,2,4,5,6,8,9],[3,7])
    with pytest.raises(ValueError, match='None of 10 items is to validate: the function'): FuncSplitter(lambda o: None)(items)

def test_col():
    for o in (rows, list(rows), Frame(rows), rows.map(lambda o: Row(*o.values()))):
        assert halves(ColSplitter(), o)==halves(ColSplitter(2), o)==([0,1,2,3,4,5,6],[7,8,9])
        assert halves(ColSplitter('fold', on=[1,3]), o)==([0,2,4,6,8],[1,3,5,7,9]) and halves(ColSplitter('fold', on=2), o)[1]==[2,6]
    yes,no = ['True','yes','VALID',' val ','validation','1','1.0',1,1.,True,np.True_],['False','no','Train','training','0','0.0',0,0.,False]
    vals = [dict(is_valid=o) for o in yes+no]
    assert halves(ColSplitter(), vals)[1]==list(range(len(yes)))
    for o in ('maybe','',None,float('nan'),2):
        with pytest.raises(ValueError, match=r"(?s)Item 20 has .* in column 'is_valid' for whether it validates: write True or False.*`on`"): ColSplitter()(vals+[dict(is_valid=o)])
    with pytest.raises(ValueError, match="line 22 has 'maybe' in column 'is_valid'"): ColSplitter(where=lambda i: f'line {i+2}')(vals+[dict(is_valid='maybe')])
    with pytest.raises(ValueError, match="None of 10 items is to validate: column 'fold' holds .'0', '1', '2', '3'"): ColSplitter('fold', on='1')(rows)
    with pytest.raises(ValueError, match="None of 2 items is to train: column 'is_valid' holds .'1'"): ColSplitter()(vals[5:6]*2)
    with pytest.raises(ValueError, match="no column 'valid' in the table, whose columns are .'fname', 'labels', 'is_valid', 'fold'"): ColSplitter('valid')(Frame(rows))
    with pytest.raises(TypeError, match="'a' is no row of a table with a 'is_valid'"): ColSplitter()(items)

def test_frames(tmp_path):
    pd = pytest.importorskip('pandas')
    df = pd.DataFrame(list(rows), index=range(100,110))
    assert halves(ColSplitter(), df)==halves(ColSplitter(), rows) and halves(ColSplitter(3, on=[1]), df)[1]==[1,5,9]
    assert halves(FuncSplitter(lambda o: o.fold==3), df)[1]==[3,7] and halves(MaskSplitter(df.fold==3), df)[1]==[3,7]
    for row in (df.iloc[4], next(df.iloc[4:].itertuples()), next(df.iloc[4:].itertuples(index=False))):
        assert ColReader('labels')(row)=='e' and ColReader([0,-1])(row)==['e.jpg',0]
    df['fold'] = df.fold.where(df.fold!=1).astype('Int64')
    for o in (df.iloc[1], df.mask(df.fname=='b.jpg').iloc[1]):
        with pytest.raises(ValueError, match='nothing in its column'): ColReader('fold')(o)

def test_file(tmp_path):
    (fn := tmp_path/'valid.txt').write_bytes('\ufeffb.jpg\r\n\r\n dé.jpg \r\n'.encode())
    fns = [Path('x/a.jpg'),'y/b.jpg',Path('dé.jpg')]
    for o in (fns, PackedPaths(fns)): assert halves(FileSplitter(str(fn)), o)==([0],[1,2])
    with pytest.warns(UserWarning, match='1 of 2 names in .*valid.txt are not among the items, the first: dé.jpg'): assert halves(FileSplitter(fn), fns[:2])==([0],[1])
    with pytest.warns(), pytest.raises(ValueError, match=r"None of 1 items is to validate: .*valid.txt lists \['b.jpg', 'dé.jpg'\]…, the items are \['a.jpg'\]"): FileSplitter(fn)(fns[:1])
    with pytest.raises(ValueError, match='None of 2 items is to train'): FileSplitter(fn)(fns[1:])
    with pytest.raises(FileNotFoundError, match='There is no file .*no.txt that lists what validates'): FileSplitter(tmp_path/'no.txt')

def test_end():
    assert halves(EndSplitter())==(list(range(8)),[8,9]) and halves(EndSplitter(.39, valid_last=False))==(list(range(3,10)),[0,1,2])
    for o in (0,1,-.1,20):
        with pytest.raises(ValueError, match='`valid_pct` is a share, more than 0 and less than 1'): EndSplitter(o)
    with pytest.raises(ValueError, match='None of 3 items is to validate: a share of 0.2'): EndSplitter()([1,2,3])

def test_subset():
    a,b = RandomSubsetSplitter(.5, .3, 3)(items)
    assert (len(a),len(b))==(5,3) and len({*a,*b})==8 and halves(RandomSubsetSplitter(.5, .3, 3))==(a,b)!=halves(RandomSubsetSplitter(.5, .3, 4))
    idxs = torch.randperm(10, generator=torch.Generator().manual_seed(3)).tolist()
    assert a+b==idxs[:8]
    torch.manual_seed(0)
    one = RandomSubsetSplitter(.5, .3)
    first = one(items)
    torch.manual_seed(0)
    assert one(items)==first!=one(items)
    for o in ((0,.5),(.5,1),(.7,.4)):
        with pytest.raises(ValueError, match='`(train|valid)_sz`'): RandomSubsetSplitter(*o)
    with pytest.raises(ValueError, match='Of 3 items, 1 train, 0 validate'): RandomSubsetSplitter(.5, .2)([1,2,3])

def test_train_test():
    from sklearn.model_selection import train_test_split
    strat = [i%2 for i in range(10)]
    for kw in (dict(random_state=1), dict(test_size=.4, random_state=2), dict(train_size=3, random_state=1), dict(stratify=strat, random_state=1), dict(test_size=.3, shuffle=False)):
        assert halves(TrainTestSplitter(**kw))==tuple(train_test_split(list(range(10)), **{'test_size':.2, **kw}))
    assert sum(strat[i] for i in TrainTestSplitter(stratify=strat)(items)[1])==1
    with patch.dict('sys.modules', {'sklearn.model_selection':None}), pytest.raises(ImportError, match='scikit-learn is missing: `pip install scikit-learn`'): TrainTestSplitter()(items)

def test_read_csv(tmp_path):
    "Columns of text, and lines as an editor counts them; what does not fit is named by its line"
    def read(text, **kwargs):
        (fn := tmp_path/'t.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_csv(fn, **kwargs)
    assert read('\ufeffa,b\n1,x\n\n "2" ,"y\nz"\n3,é\n')==(dict(a=('1',' "2" ','3'), b=('x','y\nz','é')),(2,5,6))
    assert read('a;b\r\n1;x\r\n', delimiter=';')==(dict(a=('1',), b=('x',)),(2,))
    assert read('1,x\n2,y\n', header=None)==({0:('1','2'), 1:('x','y')},(1,2)) and read('notes,\na,b\n1,x\n', header=1)==(dict(a=('1',), b=('x',)),(3,))
    for text,kw,words in (('', {}, 'has no rows: it is empty'), ('a,b\n', {}, 'has no rows below its header'), ('a,b\n1,x\n2\n', {}, r"t.csv, line 3: \['2'\] does not fit the columns \['a', 'b'\]"),
        ('a,a\n1,x\n', {}, 'of different names'), ('a;b\n1;x\n', {}, "Is the `delimiter` ','"), ('a,b\n1,ä\n'.encode('latin1'), {}, 't.csv is not in UTF-8')):
        with pytest.raises(ValueError, match=words): read(text, **kw)
    with pytest.raises(FileNotFoundError): read_csv(tmp_path/'no.csv')

def test_check_cells():
    cols = dict(file=('a.jpg','b.jpg'), label=('cat',' '), size=(1,float('nan')))
    check_cells(cols, 'file', 'file')
    check_cells(cols, ['label'], 'label', empty=True)
    with pytest.raises(ValueError, match='Row 1 of the table has no label'): check_cells(cols, ['file','label'], 'label')
    with pytest.raises(ValueError, match='line 7 has no size'): check_cells(cols, 2, 'size', lambda i: f'line {i+6}', empty=True)
    with pytest.raises(ValueError, match="no column 'x' in the table, whose columns are .'file', 'label', 'size'"): check_cells(cols, 'x', 'label')
    with pytest.raises(ValueError, match='has no label'): check_cells(Frame([dict(label=None)]), 'label', 'label')

def test_parts_of_an_item():
    "Whole tuples, also where a transform would take them part by part"
    assert ItemGetter(1)(('a','b'))=='b' and ItemGetter('k')(dict(k=3))==3 and ItemGetter(-1)([1,2])==2
    assert AttrGetter('fname')(Row('f','l','True',0))=='f' and AttrGetter('no')(Path('a')) is None and AttrGetter('no', 7)(Path('a'))==7
    assert not ItemGetter(0).random and not AttrGetter('name').random
