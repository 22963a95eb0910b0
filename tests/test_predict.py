"The `scratchai-predict` command as a user meets it, in real processes, and what it is made of"
import io,json,os,pty,signal,subprocess,sys,time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scratchai.all import *
from scratchai.loader import ItemError

for k in [k for k in globals() if k.startswith('test')]: del globals()[k] # fastcore's, which pytest would run

exe = Path(sys.executable).parent/'scratchai-predict'

@pytest.fixture
def photos(pictures): return pictures(cat=3, dog=4)

@pytest.fixture
def model(photos):
    "A file with a network that has never been trained"
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.3, seed=1, item_tfms=Resize(16), batch_tfms=Normalize.from_stats(*imagenet_stats), bs=2, num_workers=0)
    learn = Learner(dls, simple_cnn(2), path=photos.parent)
    with torch.no_grad(): learn.model[-1].weight.mul_(30)
    return learn.export()

def start(*args, **kwargs):
    std = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen([str(exe), *map(str, args)], **{**std, **kwargs})

def run(*args, **kwargs):
    "Its status, the lines that it printed, and its errors"
    p = start(*args, **kwargs)
    out,err = p.communicate(timeout=300)
    return p.returncode,out.decode().splitlines(),err.decode()

def said(capsys, *args, **kwargs):
    "What the function does in this process: status, lines, errors"
    status = scratchai_predict(*map(str, args), **kwargs)
    out,err = capsys.readouterr()
    return status,out.splitlines(),err

# What is said

def test_files_and_folders(model, photos, capsys):
    ask,fns = Predictor.load(model),get_image_files(photos)
    status,lines,err = said(capsys, model, fns[5], photos)
    assert status==0 and not err and [o.split('\t')[0] for o in lines]==[str(o) for o in (fns[5],*fns)]
    for l,fn in zip(lines[1:], fns):
        name,i,probs = ask.predict(fn)
        assert l.split('\t')[1:]==[name, str(round(probs[i].item(), 4))]

def test_top_k(model, photos, capsys):
    fn,ask = get_image_files(photos)[0],Predictor.load(model)
    lines = {k: said(capsys, model, fn, top_k=k)[1][0].split('\t')[1:] for k in (1,2,9)}
    probs = ask.predict(fn)[2]
    assert [len(o) for o in lines.values()]==[2,4,4] and lines[2]==lines[9] and lines[2][:2]==lines[1]
    assert {k: float(v) for k,v in zip(lines[2][::2], lines[2][1::2])}=={k: round(p, 4) for k,p in zip(('cat','dog'), probs.tolist())}
    assert float(lines[2][1])>=float(lines[2][3])

def test_json(model, photos, capsys):
    odd = photos/'a\tb\n.JPEG'
    get_image_files(photos)[0].rename(odd)
    for l,fn in zip(said(capsys, model, photos, json=True, top_k=2)[1], get_image_files(photos), strict=True):
        o = json.loads(l)
        assert o['file']==str(fn) and list(o['probs'])[0]==o['class'] and {*o['probs']}=={'cat','dog'}
    assert list(json.loads(said(capsys, model, odd, json=True)[1][0])['probs'])==[o['class']]

def test_several_labels(photos, capsys):
    dls = DataBlock((ImageBlock,MultiCategoryBlock), get_items=get_image_files, get_y=lambda o: [o.parent.name, 'pet'], item_tfms=Resize(8)).dataloaders(photos, bs=2, num_workers=0)
    learn = Learner(dls, simple_cnn(3), path=photos.parent)
    o = json.loads(said(capsys, learn.export(), photos/'cat/0.JPEG', json=True, top_k=3)[1][0])
    assert set(o['probs'])=={'cat','dog','pet'} and set(o['class'])=={k for k,p in o['probs'].items() if p>0.5}

def test_no_classes(photos):
    dls = DataBlock((ImageBlock,RegressionBlock), get_items=get_image_files, get_y=lambda o: 1., item_tfms=Resize(8)).dataloaders(photos, bs=2, num_workers=0)
    file = Learner(dls, simple_cnn(1), path=photos.parent).export()
    with pytest.raises(UsageError, match='no classes to name'): scratchai_predict(str(file), str(photos))

def test_each_has_its_place(model, photos):
    "In order, also if whole batches are missing, whoever makes them"
    ask,fns = Predictor.load(model),list(get_image_files(photos))
    items = [b'', b'', fns[0], b'', b'', fns[1], fns[2].read_bytes(), PILImage.create(fns[3]), b'']
    for n in (0,2):
        with pytest.warns(UserWarning, match='5 of 9'): res = list(ask.each(items, n))
        assert [i for i,_ in res]==[2,5,6,7,0,1,3,4,8] and all(isinstance(o, ItemError)==(i in (0,1,3,4,8)) for i,o in res)
        for (_,o),fn in zip(res[:4], fns): assert torch.allclose(o[2], ask.predict(fn)[2], atol=1e-6) and o[0]==ask.predict(fn)[0]

def test_stays_out_of_graphs(model, photos):
    o = next(Predictor.load(model).each([get_image_files(photos)[0]]))[1]
    assert not o[2].requires_grad and torch.is_grad_enabled()

def test_threads(model, photos):
    "Many at once, in any order, each gets its own answer"
    ask,fns = Predictor.load(model),list(get_image_files(photos))*6
    want = [ask.predict(o)[2] for o in fns]
    with ThreadPoolExecutor(8) as ex:
        assert all(a[2].equal(b) for a,b in zip(ex.map(ask.predict, fns), want))
        for res in ex.map(ask.batch, [fns]*8): assert all(torch.allclose(a[2], b, atol=1e-6) for a,b in zip(res, want))

def test_helpers(model, photos, capsys, monkeypatch):
    "A few pictures are decoded here, many by other processes"
    seen,each = [],Predictor.each
    monkeypatch.setattr(Predictor, 'each', lambda self, items, n: seen.append((len(items),n)) or each(self, items, n))
    fns = list(get_image_files(photos))
    few,many = [said(capsys, model, *o)[1] for o in (fns[:4],fns)]
    assert few==many[:4] and [n>0 for _,n in seen]==[False,True]

# What is wrong

def test_wrong_arguments(model, photos, tmp_path):
    (tmp_path/'text').write_text('no model')
    for args,kw,says in [((model,), {}, 'nothing to look at'), ((model,photos), dict(top_k=0), '--top-k is 0'), ((tmp_path/'none',photos), {}, 'cannot be opened: No such file'),
        ((tmp_path,photos), {}, 'cannot be opened: Is a directory'), ((tmp_path/'text',photos), {}, 'is no file of `learn.export`')]:
        with pytest.raises(UsageError, match=says): scratchai_predict(*map(str, args), **kw)

def test_unreadable(model, photos, tmp_path, capsys):
    "What cannot be read is reported, the rest goes on, and the status tells"
    cut,fn = tmp_path/'cut.jpg',get_image_files(photos)[0]
    cut.write_bytes(fn.read_bytes()[:-300])
    (tmp_path/'empty').mkdir()
    status,lines,err = said(capsys, model, settings := Path(__file__), tmp_path/'none.jpg', cut, fn, tmp_path/'empty')
    assert status==1 and len(lines)==1 and lines[0].startswith(f'{fn}\t')
    errs = err.splitlines()
    assert len(errs)==4 and [o.split(': ')[0] for o in errs]==[str(o) for o in (settings, tmp_path/'none.jpg', cut, tmp_path/'empty')]
    for o,says in zip(errs, ('no picture', 'No such file', 'runcated', 'Is a directory')):
        assert says in o and o.count(o.split(': ')[0])==1, errs # it is named once

@pytest.mark.parametrize('name', ['a','is','Error: x.jpg',"it's.jpg",'b\udcff.jpg'])
def test_odd_names_that_cannot_be_read(model, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert said(capsys, model, name)[2]==f'{printable(name)}: [Errno 2] No such file or directory\n'
    Path(name).write_bytes(b'no picture')
    assert said(capsys, model, name)[2]==f'{printable(name)}: is no picture that can be read.\n'

def test_only_commands_that_have_it_advise_skip_bad(monkeypatch, capsys):
    def scratchai_look(path): fail(scratchai_look)
    def scratchai_learn(path, skip_bad=False): fail(scratchai_learn)
    def fail(f):
        with cli_errors(f): raise ItemError(3, 'a.jpg', 'it is empty.')
    monkeypatch.setattr('scratchai.predict.is_cli', lambda f: True)
    for f,end in ((scratchai_look,'it is empty.'), (scratchai_learn,'it is empty; --skip-bad leaves out what cannot be read.')):
        with pytest.raises(SystemExit): f('.')
        assert capsys.readouterr().err.endswith(f': Item 3 (a.jpg) cannot be read: {end}\n')

def test_process(model, photos, tmp_path):
    "As a command: answers on one stream, errors on the other, and a status"
    fns = get_image_files(photos)
    status,lines,err = run(model, photos, '--top-k', 2)
    assert (status,err)==(0,'') and [o.split('\t')[0] for o in lines]==list(map(str, fns))
    (photos/'cat/0.JPEG').write_bytes(b'no picture')
    status,lines,err = run(model, photos, '--json')
    assert status==1 and len(lines)==len(fns)-1 and err.startswith(f'{fns[0]}: ') and len(err.splitlines())==1
    for args,says in (((), 'required: model'), ((model,), 'nothing to look at'), ((tmp_path/'none',photos), 'cannot be opened')):
        status,lines,err = run(*args)
        assert (status,lines)==(2,[]) and says in err and 'Traceback' not in err

def test_standard_input(model, photos):
    fn = get_image_files(photos)[0]
    with fn.open('rb') as f: status,(a,b),err = run(model, fn, '-', stdin=f)
    assert (status,err)==(0,'') and a.split('\t')[1:]==b.split('\t')[1:] and b[:2]=='-\t'
    status,lines,err = run(model, '-')
    assert status==1 and not lines and err.startswith('-: ')

def test_nobody_reads(model, photos):
    p = start(model, photos)
    p.stdout.close()
    err = p.stderr.read().decode()
    assert p.wait(300)==1 and err=='scratchai-predict: stopped: nobody reads what it prints.\n'

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='/dev/full is what a full disk looks like')
def test_disk_full(model, photos):
    with open('/dev/full', 'wb') as f: p = start(model, photos, stdout=f)
    err = p.communicate(timeout=300)[1].decode()
    assert p.returncode==1 and 'No space left' in err and 'Traceback' not in err

def test_ctrl_c(model, photos, tmp_path):
    "While it waits for a picture"
    os.mkfifo(pipe := tmp_path/'pipe')
    p = start(model, photos, pipe, start_new_session=True)
    for _ in get_image_files(photos)[:6]: assert p.stdout.readline()
    time.sleep(.2)
    os.killpg(p.pid, signal.SIGINT)
    err = p.communicate(timeout=60)[1].decode()
    assert p.returncode==130 and err=='scratchai-predict: stopped; nothing more is written.\n'

def test_bar_in_a_terminal(model, photos, tmp_path):
    "On standard error, if that is a terminal and the answers go elsewhere"
    main,other = pty.openpty()
    p = start(model, photos, stderr=other)
    out = p.communicate(timeout=300)[0]
    os.close(other)
    text = b''
    while b'7 of 7\r\n' not in text: text += os.read(main, 4096)
    assert len(out.splitlines())==7 and text.decode().split('\r')[1]==f"{'█'*4:30} 1 of 7" and p.returncode==0
    main,other = pty.openpty()
    p = start(model, photos, stdout=other, stderr=other)
    p.wait(300)
    os.close(other)
    assert 'of 7' not in os.read(main, 2**16).decode()

def test_bar_of_nothing():
    out = io.StringIO()
    assert list(terminal_bar(iter(()), 0, out))==[] and out.getvalue()==''
    assert list(terminal_bar('ab', 2, out))==['a','b'] and out.getvalue().count('\r')==2 and out.getvalue().endswith(f"{'█'*30} 2 of 2\n")

def test_light(model, photos):
    "A program that answers has loaded nothing that draws, and no compiler"
    code = f'''import sys; from scratchai.predict import *; from scratchai.export import Predictor
print(Predictor.load({str(model)!r}).predict({str(get_image_files(photos)[0])!r})[0])
print([o for o in ('matplotlib','fastprogress','IPython','pandas','torchvision','sympy','torch._dynamo','torch._inductor') if o in sys.modules])'''
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.stdout.split('\n')[1]=='[]' and not out.stderr, out
