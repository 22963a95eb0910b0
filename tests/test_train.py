"The `scratchai-train` command as a user meets it: real processes, and everything that can be wrong with its arguments, its folders and its surroundings."
import csv,inspect,json,os,re,shlex,shutil,signal,subprocess,sys
from pathlib import Path

import pytest,torch
from safetensors.torch import load_file,save_file

from scratchai.core import *
from scratchai.data import *
from scratchai.learner import *
from scratchai.resnet import *
from scratchai.augment import *
from scratchai.mixup import *
from scratchai.precision import *
from scratchai.export import *
from scratchai.predict import *
from scratchai.report import labelled_dl,scratchai_report
from scratchai.resume import *
from scratchai.command import *
from scratchai.imagenette import *
from scratchai.losses import accuracy

from conftest import children,gone,until

exe = Path(sys.executable).parent/'scratchai-train'
fast = ['--epochs','1','--bs','4','--size','32','--n-workers','0']
sizes = dict(train_cat=6, train_dog=6, val_cat=3, val_dog=3)

def start(cwd, *args, env=None, **kwargs):
    "Start the command in the folder `cwd`"
    cwd.mkdir(exist_ok=True)
    env = {**os.environ, 'SCRATCHAI_HOME':str(cwd.parent/'home'), **(env or {})}
    std = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors='surrogateescape')
    return subprocess.Popen([str(exe), *map(str, args)], cwd=cwd, env=env, **{**std, **kwargs})

def run(cwd, *args, **kwargs):
    "Its status, output, errors, and the files and folders it left, checkpoints apart"
    p = start(cwd, *args, **kwargs)
    out,err = p.communicate(timeout=300)
    return p.returncode,out,err,left(cwd)

def left(cwd): return sorted(str(o.relative_to(cwd)) for o in cwd.rglob('*') if o.parent.name!='checkpoints')

names = ['checkpoints','history.csv','model.safetensors','report.html','settings.json']
saved = ['scratchai-out', 'scratchai-out/1', *[f'scratchai-out/1/{o}' for o in names]]

def rows(folder): return [o[:-1] for o in csv.reader((folder/'history.csv').open())] # without the time
def same(a, b):
    "Have two runs the same weights, and the same history?"
    x,y = [load_file(o/'model.safetensors') for o in (a,b)]
    return x.keys()==y.keys() and all(x[k].equal(y[k]) for k in x) and rows(a)==rows(b)

def test_run(pictures, tmp_path):
    status,out,err,files = run(tmp_path/'cwd', pictures(**sizes), '--epochs', 2, '--bs', 4, '--size', 32)
    assert status==0 and files==saved, (out, err, files)
    for o in ('Data: your folder, 12 training and 6 validation pictures of 2 classes', 'Model: simple_cnn', 'train_loss', 'Accuracy: ',
        'Saved in scratchai-out/1: model.safetensors, history.csv, settings.json, report.html, checkpoints'): assert o in out, (o, out)
    table = [l for l in out.splitlines() if l[:1] in ('0','1')]
    assert len(table)==2 and '\r' not in out, out # plain lines where the output is no terminal
    folder = tmp_path/'cwd/scratchai-out/1'
    assert Predictor.load(folder/'model.safetensors').predict(tmp_path/'pictures/val/dog/0.JPEG')[0] in ('cat','dog')
    assert [o[0] for o in rows(folder)]==['epoch','0','1'] and 'simple_cnn on pictures' in (folder/'report.html').read_text(encoding='utf8')
    s = json.loads((folder/'settings.json').read_text())
    assert s.keys()=={*run_defaults,'path','what','data'} and (s['epochs'],s['bs'],s['size'],s['arch'],s['lr'])==(2,4,32,'simple_cnn',0.01)
    assert s['path']==str(tmp_path/'pictures') and s['data']['valid']['cat'].startswith('3 pictures, ')

def test_best_data(tmp_path, monkeypatch):
    "Imagenette is not downloaded unasked; who has it trains on it"
    monkeypatch.setenv('SCRATCHAI_HOME', str(tmp_path))
    monkeypatch.setattr('scratchai.imagenette.doodles', lambda: 'drawn')
    assert best_data()==('drawn', 'the built-in doodles')
    have = tmp_path/'data/imagenette2-160'
    (have/'train').mkdir(parents=True)
    assert best_data()==best_data(download=True)==(have, 'Imagenette, 160 px')

def test_same_seed_same_model(pictures, tmp_path):
    "Whatever the number of workers"
    path = pictures(**sizes)
    ws = [scratchai_train(path, epochs=1, bs=4, size=32, seed=3, n_workers=n, out=tmp_path/f'run{n}').export(tmp_path/f'{n}.safetensors')
        for n in (0,2)]
    assert ws[0].read_bytes()==ws[1].read_bytes()

# What the options change

quick = dict(epochs=1, bs=4, size=32, n_workers=0)

def settings(**kwargs): return run_settings(**{**quick, **kwargs})

def test_archs():
    "Every network of chapter 13 by its name"
    assert archs['simple_cnn'].__name__=='simple_cnn' and all(archs[k] is f for k,f in vars(models).items()) and len(archs)>15

def test_arch_pretrained_and_rate():
    assert [run_settings(**o).lr for o in (dict(), dict(arch='resnet18'), dict(pretrained=__file__), dict(pretrained=__file__, lr=0.1))]==[0.01,0.003,0.002,0.1]

def test_augment_and_mixup(pictures, tmp_path):
    path = pictures(**sizes)
    plain,aug = [make_dls(path, settings(augment=o)) for o in (False,True)]
    assert len(plain.train.after_batch)==len(aug.train.after_batch)-len(aug_transforms())
    assert not plain.train.one_batch()[0].equal(aug.train.one_batch()[0]) and plain.valid.one_batch()[0].equal(aug.valid.one_batch()[0])
    assert [[isinstance(o, MixUp) for o in make_learner(plain, settings(mixup=m), tmp_path).cbs].count(True) for m in (False,True)]==[0,1]

def test_fp16_is_for_a_gpu(pictures, tmp_path, capsys):
    "On a CPU it is ignored, which is said once; elsewhere it is mixed precision"
    learn = scratchai_train(pictures(**sizes), **quick, fp16=True, out=tmp_path/'out')
    out = capsys.readouterr().out
    on_cpu = learn.dls.device.type=='cpu'
    assert out.count('--fp16 is for a GPU')==on_cpu and hasattr(learn, 'mixed_precision')!=on_cpu
    dls = learn.dls
    dls.device = torch.device('cuda')
    assert hasattr(make_learner(dls, settings(fp16=True), tmp_path), 'mixed_precision') and not hasattr(make_learner(dls, settings(), tmp_path), 'mixed_precision')

@pytest.mark.parametrize('arch', ['resnet18','xresnet18'])
def test_arch(pictures, arch, tmp_path):
    learn,m = make_learner(make_dls(pictures(**sizes), settings(arch=arch)), settings(arch=arch), tmp_path),models[arch](n_out=2)
    assert {k:v.shape for k,v in learn.model.state_dict().items()}=={k:v.shape for k,v in m.state_dict().items()}
    learn.export('model.safetensors')
    assert len(Predictor.load(tmp_path/'model.safetensors').predict(tmp_path/'pictures/val/dog/0.JPEG')[2])==2

def test_pretrained(pictures, tmp_path, capsys):
    "The recipe is said in a line: the head alone, then everything"
    path,seen = pictures(**sizes),[]
    file = scratchai_train(path, **quick, out=tmp_path/'pre').path/'model.safetensors'
    def rates(self): seen.append((self.n_epoch, self.opt.frozen_idx, [round(h['lr'], 6) for h in self.opt.hypers]))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(FiniteCallback, 'before_fit', rates)
        learn = scratchai_train(path, **{**quick, 'epochs':2}, pretrained=file, out=tmp_path/'a')
    assert [o[:2] for o in seen]==[(1,len(learn.opt.hypers)-1), (2,0)] and len(learn.history)==3
    assert seen[0][2][-1]==0.002 and (seen[1][2][0],seen[1][2][-1])==(0.00001,0.001)
    recipe = [o for o in capsys.readouterr().out.splitlines() if o.startswith('Recipe: ')]
    assert len(recipe)==1 and 'pre/model.safetensors trains alone for 1 epoch, then all layers for 2' in recipe[0]
    assert [o[0] for o in rows(tmp_path/'a')]==['epoch','0','0','1']
    scratchai_train(path, **quick, pretrained=tmp_path/'a/model.safetensors', lr=1e-9, out=tmp_path/'b') # a fine-tuned one, too
    pre,was,now = [load_file(tmp_path/o/'model.safetensors')[k] for o,k in (('pre','0.0.weight'),('a','0.0.0.weight'),('b','0.0.0.weight'))]
    assert torch.allclose(was, now, atol=1e-6) and not torch.allclose(was, pre, atol=1e-6)

def test_pretrained_by_torchvisions_names(pictures, tmp_path):
    file,was = tmp_path/'weights.safetensors',resnet18().state_dict()
    save_file({k: v.contiguous() for k,v in was.items()}, file)
    s = settings(arch='resnet18', pretrained=file)
    assert make_learner(make_dls(pictures(**sizes), s), s, tmp_path).model.state_dict()['0.0.weight'].equal(was['conv1.weight'])

def test_weights_that_do_not_fit(pictures, tmp_path):
    path = pictures(**sizes)
    (tmp_path/'text.safetensors').write_text('no weights')
    save_file({'a':torch.zeros(2)}, tmp_path/'other.safetensors')
    for o,says in (('text','is damaged, or holds other things'), ('other','does not fit ResNet')):
        with pytest.raises(UsageError, match=says): scratchai_train(path, **quick, arch='resnet18', pretrained=tmp_path/f'{o}.safetensors', out=tmp_path/'out')
    assert not (tmp_path/'out').exists()

# A run that goes on

class Killed(BaseException): pass
@pytest.fixture
def cut(monkeypatch):
    "`cut(epoch)`: a training that begins this epoch of a fit ends at once, until `cut(None)`"
    at = []
    def before_epoch(self):
        if at and at[0]==(self.learn.n_fits,self.epoch): raise Killed
    monkeypatch.setattr(FiniteCallback, 'before_epoch', before_epoch)
    return lambda *o: at.__setitem__(slice(None), [o] if o!=(None,) else [])

few = dict(epochs=3, bs=4, size=16, n_workers=0, augment=True, mixup=True)

def test_resume(pictures, cut, tmp_path, monkeypatch, capsys):
    "The same weights and history as the run that was not cut; then it is finished"
    path = pictures(**sizes)
    monkeypatch.chdir(tmp_path)
    scratchai_train(path, **few, out='whole')
    cut(0,2)
    with pytest.raises(Killed): scratchai_train(path, **few, out='a run')
    assert sorted(o.name for o in Path('a run').iterdir())==[o for o in names if o not in ('model.safetensors','report.html')] and len(rows(Path('a run')))==3
    assert capsys.readouterr().out.splitlines()[-1]=="To go on: scratchai-train --resume 'a run'"
    cut(None)
    monkeypatch.chdir('/')
    learn = scratchai_train(resume=tmp_path/'a run', epochs=3, n_workers=1)
    out = capsys.readouterr().out
    assert same(tmp_path/'a run', tmp_path/'whole') and len(learn.history)==3 and 'goes on in epoch 2' in out and 'Saved in' in out
    was = {o: (o.stat().st_mtime_ns,o.stat().st_size) for o in (tmp_path/'a run').rglob('*')}
    assert scratchai_train(resume=tmp_path/'a run') is None and 'is finished, with 3 epochs: nothing is left to do' in capsys.readouterr().out
    assert was=={o: (o.stat().st_mtime_ns,o.stat().st_size) for o in (tmp_path/'a run').rglob('*')}

@pytest.mark.parametrize('at', [(0,0),(1,0),(1,1)], ids=['head','between','all'])
def test_resume_of_fine_tuning(pictures, cut, at, tmp_path):
    "Before the first checkpoint, after the head, and later"
    path,kw = pictures(**sizes),dict(few, epochs=2, mixup=False)
    pre = scratchai_train(path, **quick, out=tmp_path/'pre').path/'model.safetensors'
    scratchai_train(path, **kw, pretrained=pre, out=tmp_path/'whole')
    cut(*at)
    with pytest.raises(Killed): scratchai_train(path, **kw, pretrained=pre, out=tmp_path/'cut')
    cut(None)
    if at==(0,0): # nothing to go on from
        assert not (tmp_path/'cut').exists()
        return
    scratchai_train(resume=tmp_path/'cut')
    assert same(tmp_path/'cut', tmp_path/'whole')

def test_resume_without_a_checkpoint(pictures, tmp_path):
    "A process that was killed in its first epoch could not tidy up"
    path = pictures(**sizes)
    for o in 'ab': scratchai_train(path, **few, out=tmp_path/o)
    shutil.rmtree(tmp_path/'b/checkpoints')
    (tmp_path/'b/model.safetensors').unlink()
    scratchai_train(resume=tmp_path/'b')
    assert same(tmp_path/'a', tmp_path/'b')

@pytest.mark.parametrize('part', ['export','report'])
def test_what_cannot_be_written_is_written_later(pictures, part, tmp_path, monkeypatch, capsys):
    "A disk that is full after the training: nothing is lost"
    path = pictures(**sizes)
    scratchai_train(path, **few, out=tmp_path/'whole')
    def full(*args): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(*(Learner,'export',full) if part=='export' else ('scratchai.command.write_report',full))
        with pytest.raises(OSError, match='No space'): scratchai_train(path, **few, out=tmp_path/'full')
    assert 'To go on: ' in capsys.readouterr().out and not (tmp_path/'full/report.html').exists()
    scratchai_train(resume=tmp_path/'full')
    assert same(tmp_path/'full', tmp_path/'whole') and (tmp_path/'full/report.html').exists()

@pytest.fixture
def run_dir(pictures, tmp_path):
    "A finished run"
    scratchai_train(pictures(**sizes), **quick, out=tmp_path/'run')
    return tmp_path/'run'

def test_a_checkpoint_of_another_run(run_dir):
    "Settings that were changed by hand, and a file that was cut"
    (run_dir/'report.html').unlink()
    good = (run_dir/'settings.json').read_text()
    (run_dir/'settings.json').write_text(good.replace('"epochs": 1', '"epochs": 2'))
    with pytest.raises(UsageError, match='belongs to another run'): scratchai_train(resume=run_dir)
    (run_dir/'settings.json').write_text(good)
    next((run_dir/'checkpoints').iterdir()).write_bytes(b'cut')
    with pytest.raises(UsageError, match='fit0.* is damaged'): scratchai_train(resume=run_dir)

def test_what_contradicts_resume(run_dir, tmp_path):
    for k,v in dict(epochs=2, bs=8, size=64, seed=0, lr=0.1, arch='resnet18', pretrained=__file__, augment=True, mixup=True, fp16=True, skip_bad=True,
        download=True, out='x', path=tmp_path).items():
        with pytest.raises(UsageError, match=f"{'PATH' if k=='path' else '--'+k.replace('_', '-')} contradicts --resume"): scratchai_train(resume=run_dir, **{k:v})
    assert scratchai_train(resume=run_dir, path=str(tmp_path/'pictures'), **{**quick, 'n_workers':2}, seed=42) is None

def test_no_run(run_dir, tmp_path):
    (run_dir/'report.html').unlink()
    good = (run_dir/'settings.json').read_text()
    for text,says in (('{"epochs":', 'cannot be used: '), ('[1]', 'cannot be used: '), ('{"epochs":3}', "cannot be used: .*'path'"),
        (good.replace('"bs": 4', '"bs": 0'), 'cannot be used: --bs is 0'), (good.replace('"bs": 4', '"bs": "x"'), 'cannot be used: ')):
        (run_dir/'settings.json').write_text(text)
        with pytest.raises(UsageError, match=says): scratchai_train(resume=run_dir)
    (run_dir/'settings.json').unlink()
    for o in (run_dir, tmp_path/'nowhere', run_dir/'model.safetensors'):
        with pytest.raises(UsageError, match='There is no run in .* with a settings.json: '): scratchai_train(resume=o)
    assert 'arch' in good and not (tmp_path/'nowhere').exists()

@pytest.mark.parametrize('change,says', [('more','`dog` has 7 pictures, .* in the train set, and had 6 pictures'), ('less','`cat` has 2 pictures, .* in the valid set, and had 3'),
    ('other','`cat` has 6 pictures, .* bytes in the train set, and had 6'), ('class','`bird` has 1 pictures, .*, and had no pictures'), ('gone','There is no folder')])
def test_pictures_that_have_changed(run_dir, tmp_path, change, says):
    path,keep = tmp_path/'pictures',[(o, o.read_bytes()) for o in run_dir.rglob('*') if o.is_file() and o.name!='report.html']
    (run_dir/'report.html').unlink()
    if change=='more': shutil.copy(path/'train/dog/0.JPEG', path/'train/dog/9.JPEG')
    if change=='less': (path/'val/cat/0.JPEG').unlink()
    if change=='other': (path/'train/cat/0.JPEG').write_bytes((path/'train/cat/0.JPEG').read_bytes()+b' ')
    if change=='class': shutil.copytree(path/'train/dog', path/'train/bird', ignore=lambda d,fs: [o for o in fs if o!='0.JPEG'])
    if change=='gone': shutil.rmtree(path)
    with pytest.raises(UsageError, match=says): scratchai_train(resume=run_dir)
    assert [(o, o.read_bytes()) for o,_ in keep]==keep # a refusal changes nothing

def test_a_run_is_at_work(run_dir, tmp_path):
    "Another process cannot go on with it; one that was killed holds nothing back"
    (run_dir/'report.html').unlink()
    code = f"from pathlib import Path; from scratchai.command import at_work\nwith at_work(Path({str(run_dir)!r})): print('in', flush=True); input()"
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='in\n'
    with pytest.raises(UsageError, match='A run is at work in'): scratchai_train(resume=run_dir)
    p.kill()
    p.communicate()
    scratchai_train(resume=run_dir)
    assert (run_dir/'report.html').exists()

@pytest.mark.slow
@pytest.mark.parametrize('opts', [['--augment','--mixup','--n-workers','2'], ['--pretrained','PRE','--augment','--n-workers','0']], ids=['mixup','pretrained'])
def test_kill_9(pictures, opts, tmp_path):
    "Killed twice, and resumed by new processes: the same as the run that was left alone"
    path,cwd = pictures(**sizes),tmp_path/'cwd'
    if 'PRE' in opts:
        run(cwd, path, *fast, '--out', 'pre')
        opts = [o.replace('PRE', 'pre/model.safetensors') for o in opts]
    args = [path,'--epochs',12,'--bs',4,'--size',32,*opts]
    assert run(cwd, *args, '--out', 'whole')[0]==0
    def kill_after(n, *args):
        p,log = start(cwd, *args, stdout=subprocess.DEVNULL),cwd/'cut/history.csv'
        until(lambda: p.poll() is not None or log.exists() and len(log.read_text().splitlines())>n)
        workers = children(p.pid)
        p.kill()
        p.communicate()
        assert gone(workers)
    kill_after(3, *args, '--out', 'cut')
    kill_after(7, '--resume', 'cut')
    status,out,err,_ = run(cwd, '--resume', 'cut')
    assert status==0 and 'Traceback' not in err and same(cwd/'cut', cwd/'whole'), (out, err)

@pytest.mark.skipif(sys.platform=='win32', reason='limits are for POSIX')
def test_full_disk_while_training(pictures, tmp_path):
    "A checkpoint that cannot be written: one sentence, and no half file"
    import resource
    def small(): resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,300_000))
    status,out,err,files = run(tmp_path/'cwd', pictures(**sizes), *fast, preexec_fn=small)
    assert status==1 and not files and len(err.splitlines())==1 and 'too large' in err, (out, err, files)

def test_commands_can_be_pasted(pictures, tmp_path, monkeypatch, capsys):
    "With odd names, from the current folder, the home folder, and elsewhere"
    home = tmp_path/"my home"
    path,out = pictures('my home/a $picture', **sizes),home/"it's out"
    monkeypatch.setenv('HOME', str(home))
    for cwd,folder,o,pic in ((home,"'it'\"'\"'s out'","'it'\"'\"'s out/model.safetensors'","'a $picture/val/cat/0.JPEG'"),
        (tmp_path/'pictures2',"~/'it'\"'\"'s out'","~/'it'\"'\"'s out/model.safetensors'","~/'a $picture/val/cat/0.JPEG'")):
        cwd.mkdir(exist_ok=True)
        monkeypatch.chdir(cwd)
        scratchai_train(path, **quick, out=out)
        said = [o.strip() for o in capsys.readouterr().out.splitlines() if o.startswith('  scratchai-')]
        assert said==[f'scratchai-predict {o} {pic}', f"scratchai-report {o} {pic[:pic.index('/val')]}'", f'scratchai-train --resume {folder}']
        for args in map(shlex.split, said): assert all(Path(o.replace('~', str(home), 1) if o[0]=='~' else o).exists() for o in args[1:] if o[:2]!='--')
        shutil.rmtree(out)
    assert shell_path('/nowhere/b c')=="'/nowhere/b c'" and shell_path('.')=='.'

# What is wrong before training

@pytest.mark.parametrize('k,v,says', [('size',0,'--size is 0'), ('bs',0,'--bs is 0'), ('epochs',0,'--epochs is 0'), ('lr',float('nan'),'--lr is nan'),
    ('lr',float('inf'),'--lr is inf'), ('lr',0.,'--lr is 0'), ('n_workers',-1,'--n-workers is -1'), ('arch','resnet99','choose one of simple_cnn, resnet18, .*xresnet34'),
    ('pretrained','nowhere.pth','no such file of weights')])
def test_numbers(k, v, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says): scratchai_train(tmp_path, **{k:v})
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('classes,says', [({}, 'holds no class folders'), (dict(train_cat=3, train_dog=0, val_cat=1, val_dog=1), 'train/dog` holds no pictures'),
    (dict(train_cat=3, val_cat=1, val_dog=1), '`dog` is in'), (dict(train_cat=3, val_cat=1), 'has one class, `cat`'),
    (dict(val_cat=1, val_dog=1), 'no folder .*train` to train on'), (dict(cat=6, dog=0), 'dog` holds no pictures'), (dict(cat=6), 'has one class'),
    (dict(cat=1, dog=1), '0 validate'), (dict(train=3, val=3), 'train` holds no class folders')])
def test_folders(pictures, classes, says, tmp_path, monkeypatch):
    (tmp_path/'pictures').mkdir()
    (tmp_path/'cwd').mkdir()
    monkeypatch.chdir(tmp_path/'cwd')
    with pytest.raises(UsageError, match=says): scratchai_train(pictures(**classes))
    assert not list((tmp_path/'cwd').iterdir())

def test_no_folder(pictures, tmp_path):
    for o,says in ((tmp_path/'nowhere','no folder'), ('','no folder'), (pictures(cat=1)/'cat/0.JPEG','is a file')):
        with pytest.raises(UsageError, match=says): check_folder(o)

@pytest.mark.parametrize('classes,n', [(dict(train_cat_2024=3, train_cat=2, train_dog_a_b=4, val_cat_x=2, val_dog=1), (9,3)),
    (dict(cat_2024=10, dog=5, dog_a_b=5), (16,4)), (dict(train_cat_2024=10, train_dog=10), (16,4)), (dict(train_cat=3, train_dog=3, valid_cat=1, valid_dog=1), (6,2)),
    (dict(train=10, car=10), (16,4))])
def test_what_the_check_accepts_the_loaders_find(pictures, classes, n, tmp_path):
    "Classes with deeper folders, other names, no split"
    path = check_folder(pictures(**classes), out=tmp_path/'out')
    learn = scratchai_train(path, epochs=1, bs=4, size=16, n_workers=0, out=tmp_path/'out')
    assert (len(learn.dls.train_ds), len(learn.dls.valid_ds))==n
    assert list(learn.dls.vocab)==classes_in(class_roots(path)[0])

def test_a_random_fifth_validates(pictures, tmp_path):
    "The picture that it proposes to look at is one of them"
    status,out,err,files = run(tmp_path/'cwd', path := pictures(cat=10, dog=10), *fast)
    assert status==0 and 'your folder, of which a random fifth validates, 16 training and 4 validation pictures' in out, (out, err)
    valid = make_dls(path, settings(seed=42)).valid_ds.items
    assert f'scratchai-predict scratchai-out/1/model.safetensors {shell_path(valid[0])}\n' in out and len(valid)==4, out

@pytest.mark.parametrize('layout', ['','train_'])
def test_a_report_leaves_out_what_was_trained_on(pictures, layout, tmp_path, capsys):
    "... where a random fifth validated; all pictures count where that cannot be known"
    path = pictures(**{f'{layout}{k}': 10 for k in ('cat','dog')}) # `train` alone, or the classes themselves
    learn = scratchai_train(path, **quick, seed=5, out=tmp_path/'out')
    file = learn.path/'model.safetensors'
    dl,notes = labelled_dl(load_learner(file), path)
    assert sorted(dl.dataset.items)==sorted(learn.dls.valid_ds.items) and len(dl.dataset)==4 and notes==['Left out, because the model was trained on them: 16.']
    text = scratchai_report(str(file), str(path)).read_text(encoding='utf8')
    assert 'of 4 pictures are recognised' in text and notes[0] in text and notes[0] in capsys.readouterr().out
    def n(folder): return len(labelled_dl(load_learner(file), folder)[0].dataset)
    assert n(path)==4 and n(shutil.copytree(path, tmp_path/'copy'))==20
    shutil.copy(pic := path/layout.rstrip('_')/'cat/0.JPEG', pic.with_name('x.JPEG'))
    assert n(path)==21
    pic.with_name('x.JPEG').unlink()
    good = (learn.path/'settings.json').read_text()
    for bad in ('', '[1]', '{}', good.replace('"data"', '"dat"'), good.replace(' pictures', '')[:-9]):
        (learn.path/'settings.json').write_text(bad)
        assert n(path)==20
    (learn.path/'settings.json').unlink()
    assert n(path)==20

def test_results_do_not_become_a_class(pictures, tmp_path, monkeypatch):
    path = pictures(cat=5, dog=5)
    monkeypatch.chdir(path)
    with pytest.raises(UsageError, match='would lie among the classes'): scratchai_train('.')
    with pytest.raises(UsageError, match='would lie among the classes'): scratchai_train(path, out=path/'cat/run')
    assert sorted(o.name for o in path.iterdir())==['cat','dog']
    path = pictures('split', **sizes)
    monkeypatch.chdir(path)
    scratchai_train('.', epochs=1, bs=4, size=16, n_workers=0)
    assert [len(classes_in(o)) for o in class_roots(path)]==[2,2]

# The folder for results

def test_out_folder_is_taken_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'file.txt').write_text('mine')
    (tmp_path/'empty').mkdir()
    for o,says in (('file.txt/run','cannot be made: Not a directory'), ('file.txt','is there already'), ('empty','is there already'), ('x'*300,'too long')):
        with pytest.raises(UsageError, match=says), out_folder(o): pass
    with out_folder() as a, out_folder() as b:
        assert (str(a),str(b))==('scratchai-out/1','scratchai-out/2')
        (b/'weights').write_text('')
    with out_folder() as c: assert str(c)=='scratchai-out/1'
    assert sorted(str(o.relative_to(tmp_path)) for o in tmp_path.rglob('*'))==['empty','file.txt','scratchai-out','scratchai-out/2','scratchai-out/2/weights']
    (tmp_path/'taken').mkdir()
    with pytest.raises(OSError, match='oh'), out_folder('taken/a/b'): raise OSError('oh')
    assert (tmp_path/'taken').exists() and not (tmp_path/'taken/a').exists()

def test_default_folder_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'scratchai-out').write_text('mine')
    with pytest.raises(UsageError, match='cannot be made'), out_folder(): pass

@pytest.mark.slow
def test_two_at_once(pictures, tmp_path):
    "Each has its own number; of two with the same name, one says so"
    path,cwd = pictures(**sizes),tmp_path/'cwd'
    assert [p.wait(300) for p in [start(cwd, path, *fast) for _ in range(2)]]==[0,0]
    assert left(cwd)==['scratchai-out',*sum([[f'scratchai-out/{i}',*[f'scratchai-out/{i}/{o}' for o in names]] for i in (1,2)], [])]
    ps = [start(cwd, path, *fast, '--out', 'run') for _ in range(2)]
    errs = [p.communicate(timeout=300)[1] for p in ps]
    assert sorted(p.returncode for p in ps)==[0,2] and 'is there already' in ''.join(errs), errs

def test_refused(pictures, tmp_path):
    "Status 2, one sentence, nothing written"
    (tmp_path/'file.txt').write_text('mine')
    status,out,err,files = run(tmp_path/'cwd', pictures(**sizes), '--out', tmp_path/'file.txt/run')
    assert status==2 and not out and not files and not (tmp_path/'home').exists(), (out, err, files)
    assert len(err.splitlines())==1 and err.startswith('scratchai-train: ') and 'cannot be made' in err, err

# What goes wrong in training

@pytest.mark.parametrize('lr', [1e12, 1e30])
def test_weights_that_are_no_numbers_are_not_saved(pictures, lr, tmp_path):
    status,out,err,files = run(tmp_path/'cwd', pictures(**sizes), *fast, '--lr', lr)
    assert status==1 and not files and 'lower --lr' in err and 'Traceback' not in err and 'Saved' not in out, (out, err, files)

def test_unreadable_picture(pictures, tmp_path):
    path = pictures(**sizes)
    for o in ('train/cat/2.JPEG', 'val/dog/0.JPEG'): (path/o).write_bytes(b'no picture')
    status,out,err,files = run(tmp_path/'cwd', path, *fast)
    assert status==1 and not files and 'Traceback' not in err, (out, err, files)
    assert 'cat/2.JPEG) cannot be read: ' in err and 'UnidentifiedImageError' in err and '; --skip-bad leaves out' in err and '.;' not in err, err
    status,out,err,files = run(tmp_path/'cwd', path, '--skip-bad', *fast)
    assert status==0 and files==saved and '1 of 12 items were left out' in err and 'val/dog/0.JPEG' in err, (out, err, files)

def test_predictions_keep_their_places(pictures, tmp_path):
    path = pictures(**sizes)
    good = scratchai_train(path, epochs=1, bs=4, size=16, n_workers=0, out=tmp_path/'a')
    want = good.get_preds()[0]
    want[[0,4]] = torch.nan
    for o in ('val/cat/0.JPEG', 'val/dog/1.JPEG'): (path/o).write_bytes(b'no picture')
    dls = folder_dls(path, bs=4, size=16, n_workers=0, skip_bad=True)
    learn = Learner(dls, good.model, metrics=accuracy)
    with pytest.warns(UserWarning, match='2 of 6'): assert learn.get_preds()[0].allclose(want, equal_nan=True)

def test_nothing_can_be_read(pictures, tmp_path):
    path = pictures(**sizes)
    for o in (path/'val').rglob('*.JPEG'): o.write_bytes(b'no picture')
    with pytest.raises(LoaderError, match='There is no valid_loss'), pytest.warns(UserWarning):
        scratchai_train(path, epochs=1, bs=4, size=16, n_workers=0, skip_bad=True, out=tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_ctrl_c(pictures, tmp_path):
    cwd = tmp_path/'cwd'
    p = start(cwd, pictures(**sizes), '--epochs', 5000, '--bs', 4, '--size', 32, '--n-workers', 2, start_new_session=True)
    while not p.stdout.readline().startswith('1'): assert p.poll() is None, p.stderr.read() # the checkpoint of epoch 0 is there
    workers = children(p.pid)
    os.killpg(p.pid, signal.SIGINT)
    out,err = p.communicate(timeout=60)
    assert p.returncode==130 and 'stopped' in err and 'Traceback' not in err, (p.returncode, err)
    assert workers and gone(workers) and out.splitlines()[-1]=='To go on: scratchai-train --resume scratchai-out/1'
    assert left(cwd)==[o for o in saved if 'model' not in o and 'report' not in o]

# What is around it

@pytest.mark.parametrize('lines', [0, 3])
def test_closed_pipe(pictures, lines, tmp_path):
    "Nobody reads what it prints: it trains on, and saves"
    cwd = tmp_path/'cwd'
    p = start(cwd, pictures(**sizes), *fast, bufsize=1)
    for _ in range(lines): p.stdout.readline()
    p.stdout.close()
    p.stdout = None
    err = p.communicate(timeout=300)[1]
    assert p.returncode==0 and 'Error' not in err and 'Traceback' not in err, err
    assert left(cwd)==saved

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='there is no /dev/full')
def test_output_on_a_full_disk(pictures, tmp_path):
    with open('/dev/full', 'w') as f: status,_,err,files = run(tmp_path/'cwd', pictures(**sizes), *fast, stdout=f)
    assert status==0 and files==saved and 'Traceback' not in err, err

def test_nobody_reads_the_error(tmp_path):
    "As in `scratchai-train nowhere 2>&1 | true`: the status is right all the same"
    p = start(tmp_path/'cwd', 'nowhere')
    for o in (p.stdout, p.stderr): o.close()
    assert p.wait(100)==2

def test_odd_names(pictures, tmp_path):
    "Names with `$`, and names that are not UTF-8, of classes, files and results; a terminal that knows ASCII only"
    path = pictures(**{'train_$50_$100':5, 'train_dog':5, 'val_$50_$100':2, 'val_dog':2})
    for o in ('train','val'):
        try: (path/o/'dog').rename(os.fsdecode(os.fsencode(path/o/'h')+b'\xfcnd'))
        except OSError: pytest.skip('this file system knows UTF-8 only')
        (path/o/'$50').rename(path/o/'ü$50_$100')
    status,out,err,files = run(tmp_path/'cwd', path, *fast, '--out', b'r\xfcn'.decode(errors='surrogateescape'), env=dict(PYTHONIOENCODING='ascii'))
    assert status==0 and len(files)==6 and 'Saved in ' in out and 'Traceback' not in err, (out, err, files)

class Spy:
    "Ends the process where torch is about to be loaded, and says how its threads will wait"
    def find_spec(self, name, *args):
        if name=='torch':
            print(os.environ.get('OMP_WAIT_POLICY'), flush=True)
            os._exit(0)

@pytest.mark.parametrize('module', ['command','predict','report'])
@pytest.mark.parametrize('own', [None,'active'])
def test_threads_sleep(module, own):
    "The variable is set before torch is loaded, and a user's own value stays"
    env = {k:v for k,v in os.environ.items() if k!='OMP_WAIT_POLICY'} | ({'OMP_WAIT_POLICY':own} if own else {})
    code = f'import os,sys\n{inspect.getsource(Spy)}\nsys.meta_path.insert(0, Spy())\nimport scratchai.{module}'
    r = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=100)
    assert r.stdout.strip()==(own or 'passive'), r.stderr

def test_every_command_is_tested_for_that(): # ... by its name in settings.ini
    text = (Path(__file__).parent.parent/'settings.ini').read_text()
    assert set(re.findall(r'=scratchai\.(\w+):', text))=={'command','predict','report'}
