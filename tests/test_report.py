"Reports: what stands on the page, that it is one file and escaped, and what the command says of models and folders that do not fit"
import csv,re,subprocess,sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt,numpy as np,pytest,torch
from fastcore.all import L
from fastcore.xml import Td,to_xml
from PIL import Image
from scratchai import report
from scratchai.block import *
from scratchai.core import *
from scratchai.crops import *
from scratchai.data import *
from scratchai.doodles import class_names
from scratchai.export import load_learner
from scratchai.interpret import *
from scratchai.layers import *
from scratchai.learner import *
from scratchai.losses import *
from scratchai.module import *
from scratchai.predict import UsageError
from scratchai.report import *
from scratchai.transform import *

def net(n=3): return Sequential(ConvLayer(3, 4, stride=2), AdaptivePool(), Flatten(), Linear(4, n))
def by_hand(path, n=3): return Learner(folder_dls(path, 16, 4, n_workers=0, device='cpu', seed=1), net(n))
def by_block(path, n=3, y=CategoryBlock, get_y=parent_label, model=None, path_to=None, **kwargs):
    block = DataBlock((ImageBlock, y), get_items=get_image_files, get_y=get_y, splitter=GrandparentSplitter(),
        item_tfms=Resize(16, 'squish'), **kwargs)
    return Learner(block.dataloaders(path, bs=4, num_workers=0, device='cpu', seed=1), model or simple_cnn(n), path=path_to or path)

@pytest.fixture
def path(pictures): return pictures(train_ant=4, train_bee=3, train_cow=3, valid_ant=3, valid_bee=3, valid_cow=2)
@pytest.fixture
def model(path, tmp_path):
    "An exported model that knows ant, bee and cow"
    (tmp_path/'run').mkdir()
    return by_block(path, path_to=tmp_path/'run').export('model.safetensors')

class Page(HTMLParser):
    "What a browser finds: the elements with their attributes, and the text"
    def __init__(self, o):
        super().__init__()
        self.tags,self.text = L(),''
        self.feed(o.read_text(encoding='utf-8') if isinstance(o, Path) else to_xml(tuple(o), indent=False))
        self.text = ' '.join(self.text.split())
    def handle_starttag(self, tag, attrs): self.tags.append((tag,dict(attrs)))
    def handle_data(self, data): self.text += data
    def all(self, tag): return self.tags.filter(lambda o: o[0]==tag).itemgot(1)
    def attr(self, k): return self.tags.itemgot(1).filter(lambda o: k in o).itemgot(k)

def given(targs, guesses, vocab='ant bee cow'.split(), p=.8):
    "An interpretation of these decisions, each with the probability `p`"
    c,targs,guesses = len(vocab),tensor(targs),tensor(guesses)
    preds = torch.full((len(targs),c), (1-p)/(c-1)).scatter_(1, guesses[:,None], p)
    learn = Learner(DataLoaders([], [], vocab=vocab, device='cpu'), net(c), cross_entropy)
    return ClassificationInterpretation(learn, [], preds, targs, guesses, -preds[range(len(targs)),targs].log())

# numbers

def test_wilson():
    assert np.allclose(wilson(8, 10), (.490162, .943318), atol=1e-6) # R: prop.test(8, 10, correct=FALSE)
    assert np.allclose(wilson(0, 10), (0, .277536), atol=1e-5) and np.allclose(wilson(10, 10), (.722464, 1), atol=1e-5)
    assert wilson(8, 10, z=1)[0]>wilson(8, 10)[0] and wilson(80, 100)[0]>wilson(8, 10)[0]

def test_say_accuracy():
    text = Page(say_accuracy(given([0,0,0,0,1,1,2,2], [0,0,0,1,1,2,1,1]))).text
    lo,hi = wilson(4, 8)
    assert text.startswith('50.0% of 8 pictures are recognised.') and f'between {lo:.1%} and {hi:.1%} (95% Wilson' in text
    assert 'most frequent class would be right for 50.0%' in text
    assert 'Hardest class: cow, with 0 of 2 ' in text and 'Most frequent mistake: cow taken for bee (2).' in text
    assert 'mistake' not in Page(say_accuracy(given([0,1], [0,1]))).text

def cells(part, tag='td'): return re.findall(fr'<{tag}(?: [^>]*)?>(.*?)</{tag}>', to_xml(tuple(part), indent=False))

def test_list_classes():
    part = list_classes(given([0,0,0,0,1,1], [0,0,0,1,1,0]))
    assert cells(part, 'th')[4:]==['bee','ant','cow'] # the hardest first, at the end the one without pictures
    assert cells(part)==['2','50%','50%', '4','75%','75%', '0','0%','0%']

def test_list_confused():
    interp = given([0,0,0,1,1,2], [0,0,1,1,1,1])
    part = list_confused(interp)
    assert [int(o) for o in cells(part)]==interp.confusion_matrix().flatten().tolist()
    styles = Page(part).attr('style')
    assert styles[:2]==['--share:0.82','--share:0.58'] and len(Page(part).tags.filter(lambda o: o[1].get('class')=='right'))==3
    few = list_confused(interp, k=1)
    assert cells(few, 'th')==['Actual class','Taken for','Times','ant'] and cells(few)==['bee','1']
    assert len(cells(list_confused(interp, k=2)))==4

# the elements

def test_html_table():
    page = Page([html_table('A <table>', ('x','y'), [('row', 1), ('other', Td('2', cls='big'))])])
    assert page.all('th').itemgot('scope')==['col','col','row','row'] and page.text=='A <table>xyrow1other2'
    box = page.tags[0][1]
    assert (box['role'],box['tabindex'],box['aria-label'])==('region','0','A <table>') and page.all('td')[1]=={'class':'big'}

def test_html_picture():
    a,b = [html_picture(torch.rand(3,8,12, generator=torch.Generator().manual_seed(1)), 'a "picture"', heat) for heat in (None, np.eye(8))]
    src,alt = [Page([a]).all('img')[0][k] for k in ('src','alt')]
    assert src.startswith('data:image/jpeg;base64,') and alt=='a "picture"' and a.attrs['src']!=b.attrs['src']
    assert not plt.get_fignums()

def test_html_plot():
    page = Page([html_plot(lambda: plt.plot([1,2]), 'it <grows>')])
    assert page.tags[0][1]=={'role':'img', 'aria-label':'it <grows>', 'class':'plot'} and len(page.all('svg'))==1
    assert any('currentColor' in o for o in page.attr('style')) and not plt.get_fignums()

def test_show_trust():
    page = Page(show_trust(given([0,0,1,2], [0,0,1,1], p=.85)))
    assert 'the model is 85% sure, and 75% of its decisions are right.' in page.text
    assert 'Of those that it is 80 to 90% sure of, 75% are right' in page.attr('aria-label')[0] and '80 to 90%485%75%' in page.text

def test_show_history():
    rows = [dict(epoch=0, train_loss=1.25, valid_loss=None, note='<b>'), dict(epoch=1, train_loss=.5, valid_loss=.75, note='x')]
    page = Page(show_history(rows))
    assert '01.25–<b>10.50.75x' in page.text and 'of 2 epochs; the last: epoch 1, train_loss 0.5,' in page.attr('aria-label')[0]
    assert 'valid_loss' in page.text and not page.all('b')
    assert 'x' in Page(show_history([dict(a='x')])).text # nothing to draw

# mistakes

def test_show_mistakes(path):
    learn = by_block(path)
    interp = learn.interpret()
    wrong = [i for i in interp.top_losses()[1] if interp.decoded[i]!=interp.targs[i]]
    page = Page(show_mistakes(interp, n=3))
    assert len(wrong)>=3 and len(page.all('figure'))==3 and len(page.all('img'))==6 and 'Grad-CAM' in page.text
    for i,cap in zip(wrong[:3], re.findall('ant|bee|cow', re.sub(r'valid/\w+', '', page.text))[::2]): assert cap==interp.names[interp.targs[i]]
    fns = interp.items(wrong[:3])
    assert all(f'valid/{o.parent.name}/{o.name}' in page.text for o in fns) and str(path) not in page.text
    assert all(o in page.all('img').itemgot('alt') for o in [f'A picture of the class {interp.names[interp.targs[wrong[0]]]}'])
    assert len(Page(show_mistakes(interp)).all('figure'))==min(len(wrong), 12)

def test_where_the_heat_is(path, monkeypatch):
    def heat(model, x, cls):
        res = np.zeros((len(x),16,16))
        res[:,15,0] = 1
        return res
    monkeypatch.setattr(report, 'heat_over', heat)
    assert 'The same, with most heat at the bottom left' in Page(show_mistakes(by_block(path).interpret())).all('img').itemgot('alt')

def test_no_mistakes_no_maps(path):
    flat = Sequential(Flatten(), Linear(16*16*3, 3))
    interp = by_block(path, model=flat).interpret()
    page = Page(show_mistakes(interp))
    assert page.all('img') and len(page.all('img'))==len(page.all('figure')) and 'Grad-CAM' not in page.text
    interp.decoded = interp.targs
    assert Page(show_mistakes(interp)).text=='There are none.'

# the page

@pytest.mark.parametrize('make', [by_hand, by_block])
def test_write_report(path, tmp_path, make):
    learn = make(path)
    learn.model.train()
    file = write_report(learn, tmp_path/'new'/'report.html')
    page = Page(file)
    assert file==tmp_path/'new'/'report.html' and file.stat().st_size<1e6 and file.read_text().startswith('<!doctype html>')
    assert page.all('html')[0]['lang']=='en' and page.all('meta').map(lambda o: o.get('name')).filter()==['viewport'] and page.all('meta')[0]['charset']=='utf-8'
    assert [len(page.all(o)) for o in ('h1','main','title','script','link')]==[1,1,1,0,0]
    assert all(o['alt'] and o['src'].startswith('data:') for o in page.all('img')) and page.all('img')
    assert len(page.all('caption'))==len(page.all('table')) and set(page.all('th').itemgot('scope'))=={'col','row'}
    assert not [k for _,o in page.tags for k in o if k in ('href','srcset') and not o[k].startswith('#') or k[:2]=='on']
    assert '8 pictures are recognised' in page.text and 'for 3 classes' in page.text and '3 × 16 × 16' in page.text
    assert learn.model.training and not plt.get_fignums() and 'How was it trained?' not in page.text
    assert not any(getattr(m, '__hooks__', None) for m in learn.model.modules())

def test_arguments(path, tmp_path):
    learn = by_block(path)
    learn.history = [dict(epoch=0, train_loss=1., valid_loss=2.)]
    page = Page(write_report(learn, tmp_path/'a.html', 'My <title>', ['A note.'], learn.dls.train))
    assert page.text.count('My <title>')==2 and '10 pictures are recognised' in page.text and 'A note.' in page.text
    assert 'How was it trained?' in page.text

def test_batches_and_numbers_that_are_none(path, tmp_path):
    learn = by_hand(path)
    page = Page(write_report(learn, tmp_path/'a.html', dl=[learn.dls.valid.one_batch()]))
    assert '4 pictures are recognised' in page.text and page.all('figure') and 'valid/' not in page.text
    for p in learn.model.parameters(): p.data.fill_(float('nan'))
    assert '8 pictures are recognised' in Page(write_report(learn, tmp_path/'a.html')).text

def test_all_is_escaped(pictures, tmp_path):
    name,evil = "a'b\"<img src=x onerror=alert(1)><script>alert(1)<","<script>alert(2)</script>&lt;\"'"
    path = pictures(**{f'{s}_{c}': 3 for s in ('train','valid') for c in ('ant','bee')})
    for o in (path/'train/bee',path/'valid/bee'): o.rename(o.with_name(name))
    learn = by_block(path, n=2)
    learn.history = [{'epoch':0, evil:1., 'train_loss':evil}]
    learn.model[-1].bias.data[:] = tensor([0,1e3]) # the class with the name is always mistaken
    page = Page(write_report(learn, tmp_path/'a.html', evil, notes=[evil]))
    assert not page.all('script') and not page.attr('onerror') and page.text.count(evil)>=5 and page.text.count(name)>=3
    assert all(o['src'].startswith('data:') for o in page.all('img')) and any(name in o for o in page.attr('alt')) and any(evil in o for o in page.attr('aria-label'))

def test_whole_or_not_at_all(path, tmp_path, monkeypatch):
    file = tmp_path/'out'/'report.html'
    file.parent.mkdir()
    file.write_text('old')
    monkeypatch.setattr(report, 'html_page', lambda *args: '\ud800') # which no file can hold
    with pytest.raises(UnicodeEncodeError): write_report(by_block(path), file)
    assert file.read_text()=='old' and [o.name for o in file.parent.iterdir()]==['report.html']

def mask_of(fn): return np.zeros((16,16), dtype=np.uint8)
@pytest.mark.parametrize('kind', ['several','numbers','masks'])
def test_other_kinds_of_model(path, tmp_path, kind):
    y,get_y,model = dict(several=(MultiCategoryBlock,lambda o: [parent_label(o)],None), numbers=(RegressionBlock,lambda o: 1.,simple_cnn(1)),
        masks=(MaskBlock(['a','b']),mask_of,Sequential(Conv2d(3, 2, 1))))[kind]
    with pytest.raises(TypeError, match='one class'): write_report(by_block(path, y=y, get_y=get_y, model=model), tmp_path/'a.html')
    assert not (tmp_path/'a.html').exists()

def test_odd_data(path, tmp_path):
    for o in (path/'valid/cow').iterdir(): o.unlink()
    (path/'valid/ant/0.JPEG').write_bytes(b'no picture')
    learn = by_block(path)
    dl = learn.dls.valid.new(skip_bad=True)
    with pytest.warns(UserWarning, match='1 of 6'): file = write_report(learn, tmp_path/'a.html', dl=dl)
    text = Page(file).text
    assert 'Pictures: 5,' in text and 'cannot be read: 1, as valid/ant/0.JPEG.' in text and 'Classes without pictures: cow.' in text

def test_readable_in_light_and_dark():
    "Contrasts of at least 4.5, as WCAG 2.2 asks for: text on the page, and numbers on the darkest cell"
    def rgb(o): return [int(c, 16) for c in re.findall('..', o[1:] if len(o)==7 else ''.join(c*2 for c in o[1:]))]
    def lum(c): return np.where((c := np.array(c)/255)<=.04045, c/12.92, ((c+.055)/1.055)**2.4) @ [.2126,.7152,.0722]
    def contrast(*cs): return np.divide(*sorted((lum(o)+.05 for o in cs), reverse=True))
    blue = [int(o) for o in re.search(r'rgba\((\d+),(\d+),(\d+),calc\(var\(--share\)\*\.6\)', report._css).groups()]
    themes = [dict(re.findall(r'--(\w+):(#\w+)', o)) for o in report._css.split('@media')[:2]]
    assert len(themes)==2
    for o in themes:
        ink,soft,paper = [rgb(o[k]) for k in ('ink','soft','paper')]
        assert contrast(ink, paper)>10 and contrast(soft, paper)>4.5 and contrast(ink, .6*np.array(blue)+.4*np.array(paper))>4.5

def test_names_of_rows_have_room_on_a_phone():
    "A long name may be broken anywhere, so its column has a width that holds usual words; a number has none"
    th = dict(o.strip().rsplit(':', 1) for o in re.search(r'tbody th\{(position[^}]*)', report._css)[1].split(';'))
    assert 5<=float(th['min-width'].removesuffix('rem'))<float(th['max-width'].removesuffix('rem'))<=15

# a folder's pictures

def labels(dl): return [dl.vocab[y] for _,y in dl.dataset]

@pytest.mark.parametrize('split', ['valid','val','train',''])
def test_layouts(pictures, model, split):
    root = pictures('other', **{f'{split}_{k}'.lstrip('_'): n for k,n in dict(ant=2, cow=1).items()}, **({} if split in ('','train') else {'train_bee':2}))
    (root/split/'ant/deep').mkdir()
    Image.new('RGB', (20,20)).save(root/split/'ant/deep/x.png')
    Image.new('RGB', (20,20)).save(root/split/'not_in_a_class.png')
    dl,notes = labelled_dl(load_learner(model), root)
    assert sorted(labels(dl))==['ant','ant','ant','cow'] and any('training' in o for o in notes)==(split=='train')
    assert {o.name for o in dl.dataset.items}=={'0.JPEG','1.JPEG','x.png'} and len(dl.one_batch())==2

def test_unknown_classes(pictures, model):
    dl,notes = labelled_dl(load_learner(model), pictures('other', ant=2, dog=1, cat=1))
    assert labels(dl)==['ant','ant'] and [re.sub('.*: ', '', o) for o in notes]==['cat.','dog.']

def test_names_of_folders(pictures, tmp_path):
    a,b = list(class_names)[:2]
    learn = by_block(pictures(**{f'{s}_{o}': 2 for s in ('train','valid') for o in (a,b)}), n=2, get_y=lambda o: class_names[parent_label(o)])
    learn = load_learner(learn.export(tmp_path/'m.safetensors'))
    assert set(labels(labelled_dl(learn, tmp_path/'pictures')[0]))=={class_names[a],class_names[b]}

def test_folders_that_do_not_fit(pictures, model, tmp_path):
    learn = load_learner(model)
    with pytest.raises(UsageError, match='There is no folder'): labelled_dl(learn, tmp_path/'none')
    with pytest.raises(UsageError, match='no pictures of classes that the model knows.*ant.*bee.*cow'): labelled_dl(learn, pictures('other', dog=2))
    for o in (tmp_path/'other/dog').iterdir(): o.unlink()
    (tmp_path/'other/dog').rename(tmp_path/'other/ant')
    with pytest.raises(UsageError, match='no pictures of classes'): labelled_dl(learn, tmp_path/'other')

# the command

def test_command(model, path, capsys):
    out = scratchai_report(str(model), str(path))
    text = Page(out).text
    assert out==model.with_suffix('.html') and 'model.safetensors on pictures' in text and '8 pictures' in text and 'How was it' not in text
    assert capsys.readouterr().out.splitlines()[-1]==f'Report: {out}'
    (model.parent/'history.csv').write_text('epoch,train_loss,valid_loss\n0,1.5,\n1,1.25,1.75\n')
    (path/'valid/ant/0.JPEG').write_bytes(b'')
    (path/'valid/dog').mkdir()
    text = Page(scratchai_report(str(model), str(path), out=str(model.parent/'b.html'))).text
    assert 'How was it trained?' in text and '11.251.75' in text and 'cannot be read: 1' in text and 'does not know the class: dog' in text
    assert 'does not know the class: dog' in capsys.readouterr().out and (model.parent/'b.html').exists()

@pytest.mark.parametrize('data', [b'', b'epoch\n', b'\xff\xfe\x00', b'epoch,train_loss\n0,'], ids=['empty','heading','bytes','cut'])
def test_history_that_cannot_be_read(model, path, data, monkeypatch):
    (model.parent/'history.csv').write_bytes(data)
    monkeypatch.setattr(report, 'write_report', lambda learn, *args: histories.append(learn.history))
    histories = []
    scratchai_report(str(model), str(path))
    assert histories==[[dict(epoch=0, train_loss=None)] if data==b'epoch,train_loss\n0,' else []]

def test_command_says_what_is_wrong(model, path, tmp_path):
    def says(match, *args, **kwargs):
        with pytest.raises(UsageError, match=match): scratchai_report(*map(str, args), **kwargs)
    says('There is no file', tmp_path/'none', path)
    says('There is no file', tmp_path, path)
    says('must end in `.html`', model, path, out=str(model))
    says('There is no folder', model, tmp_path/'none')
    (bad := tmp_path/'bad.safetensors').write_bytes(b'no model')
    says('is no file of `learn.export`', bad, path)
    for o in path.glob('valid/*/*'): o.write_bytes(b'')
    says('no item could be read', model, path)
    assert list(tmp_path.rglob('*.html'))==[]

def test_model_of_another_kind(path, tmp_path):
    file = by_block(path, y=RegressionBlock, get_y=float_label, model=simple_cnn(1)).export(tmp_path/'m.safetensors')
    with pytest.raises(UsageError, match='no pictures of classes'): scratchai_report(str(file), str(path))
def float_label(o): return float(len(o.name))

@pytest.mark.slow
def test_as_a_process(model, path, tmp_path):
    (script := tmp_path/'scratchai-report').write_text('import sys; from scratchai.report import scratchai_report; sys.exit(scratchai_report())')
    def run(*args): return subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True, cwd=tmp_path)
    r = run(model, path, '--out', 'page.html')
    assert (r.returncode,r.stdout.splitlines()[-1],r.stderr)==(0,'Report: page.html','') and (tmp_path/'page.html').exists()
    r = run(model, tmp_path/'none')
    assert (r.returncode,r.stdout)==(2,'') and re.fullmatch(r'scratchai-report: There is no folder `.*`: name one .*\n', r.stderr)
