"Metrics: scikit-learn's numbers for every kind of average, uneven batches, several targets, 16 bits, odd shapes"
import math,pickle
from copy import deepcopy
from functools import partial

import pytest,sklearn.metrics as skm,torch,torch.nn.functional as F
from fastcore.basics import NS
from fastcore.test import test_close as close,test_fail as fails

from scratchai.core import tensor
from scratchai.learner import Callback,Learner,synth_learner
from scratchai.losses import accuracy,cross_entropy,mse
from scratchai.metrics import *

@pytest.fixture
def data():
    "Logits `(200, 10)`, classes, several labels at once, and two classes"
    return NS(pred=torch.randn(200,10), targ=torch.randint(10,(200,)), many=torch.randint(2,(200,10)), y2=torch.randint(2,(200,)))

def whole(m, pred, *targs):
    "The metric over uneven batches"
    m.reset()
    for p,*ts in zip(pred.split(64), *[t.split(64) for t in targs]): m.accumulate(NS(pred=p, yb=tuple(ts)))
    return m.value

quiet = partial(pytest.mark.filterwarnings, 'ignore::sklearn.exceptions.UndefinedMetricWarning')
three = ((Precision,skm.precision_score), (Recall,skm.recall_score), (F1Score,skm.f1_score))

def test_means(data):
    p,t,many = data.pred,data.targ,data.many
    close(error_rate(p, t), skm.zero_one_loss(t, p.argmax(-1)))
    close(error_rate(p.T, t, axis=0), error_rate(p, t))
    close(top_k_accuracy(p, t, k=3), skm.top_k_accuracy_score(t, p, k=3))
    close(top_k_accuracy(p.T, t, axis=0), top_k_accuracy(p, t))
    maps,pixels = torch.randn(4,6,3,2),torch.randint(6,(4,3,2))
    close(top_k_accuracy(maps, pixels, k=2, axis=1), skm.top_k_accuracy_score(pixels.flatten(), maps.movedim(1,-1).flatten(0,-2), k=2, labels=range(6)))
    close(accuracy_multi(p, many), ((p>0)==many.bool()).float().mean())
    close(accuracy_multi(p.sigmoid(), many, sigmoid=False), accuracy_multi(p, many))
    close(accuracy_multi(p, many, thresh=.9), ((p.sigmoid()>.9)==many.bool()).float().mean())
    close(mae(p, many), F.l1_loss(p, many.float()))

def test_shapes_must_be_the_same(data):
    for f in (mae,accuracy_multi): fails(f, args=(torch.ones(2,1), torch.ones(2)), contains=f'`{f.__name__}` compares one shape')
    fails(top_k_accuracy, args=(data.pred, data.targ[:,None]), contains='one shape, got (200,) and (200, 1)')
    fails(F1Score(), args=(data.pred[:3,:2], tensor(1)), contains='one shape, got (3,) and (1,)')
    fails(F1Score(), args=(data.pred[:3,:2], torch.eye(2)[[0,1,1]]), contains='one shape, got (3,) and (6,)')
    fails(RocAuc(), args=(data.pred, data.targ[:5]), contains='one shape')

def test_accum_metric(data):
    m = AccumMetric(mse)
    assert (m.name,m.value,AccumMetric(partial(mse)).name,AccumMetric(mse, name='x').name)==('mse',None,'mse','x')
    close(rmse(data.pred, data.many), F.mse_loss(data.pred, data.many.float()).sqrt())
    assert rmse.name=='rmse' and rmse.preds==rmse.targs==[]
    close(AccumMetric(lambda p,t: p.sum(), activation='softmax', flatten=False)(data.pred, data.targ), 200., eps=1e-3)
    close(AccumMetric(lambda p,t: p.sum(), activation='sigmoid')(data.pred, data.targ), data.pred.sigmoid().sum(), eps=1e-3)
    for f in (deepcopy, lambda o: pickle.loads(pickle.dumps(o))): close(f(rmse)(data.pred, data.many), rmse(data.pred, data.many))

@pytest.mark.parametrize('invert', [False,True])
def test_accum_metric_with_two_targets(data, invert):
    "A function gets each target whole, and a learner whose batches have two of them has the metric"
    def f(*args, k=1):
        a,b,pred = args if invert else (*args[1:],args[0])
        return k*((pred-a)*b).abs().mean()
    a,b = torch.randn(200,10),torch.rand(200,10)
    m = AccumMetric(f, invert_arg=invert, k=2)
    close(whole(m, data.pred, a, b), 2*((data.pred-a)*b).abs().mean())
    close(m(data.pred, a, b), 2*((data.pred-a)*b).abs().mean())
    dl = [(torch.randn(n,3),torch.randn(n,2),torch.rand(n,2)) for n in (8,8,3)]
    learn = Learner(NS(train=dl, valid=dl, n_inp=1), torch.nn.Linear(3,2), lambda p,a,b: mse(p, a), metrics=m)
    x,a,b = map(torch.cat, zip(*dl))
    close(learn.validate()[1], 2*((learn.model(x)-a)*b).abs().mean().item())

def test_scikit_learns(data):
    p,t,y2 = data.pred,data.targ,data.y2
    close(skm_to_fastai(skm.cohen_kappa_score)(p, t), skm.cohen_kappa_score(t, p.argmax(-1)))
    for o in (p[:,0], p[:,:1]): close(skm_to_fastai(skm.accuracy_score)(o, y2), skm.accuracy_score(y2, p[:,0]>0))
    close(skm_to_fastai(skm.hamming_loss, thresh=.5, flatten=False)(p, data.many), 1-accuracy_multi(p, data.many))
    prob = skm_to_fastai(skm.roc_auc_score, activation='binarysoftmax')
    close(prob(p[:,:2], y2), skm.roc_auc_score(y2, p[:,:2].softmax(1)[:,1]))
    close(prob(p[:,0], y2), skm.roc_auc_score(y2, p[:,0]))
    close(skm_to_fastai(skm.r2_score, is_class=False)(p, data.many), skm.r2_score(data.many.flatten(), p.flatten()))
    close(skm_to_fastai(skm.f1_score, average='micro', axis=1)(p, t), accuracy(p, t))

@quiet()
@pytest.mark.parametrize('f,g', three)
def test_precision_recall_f1(data, f, g):
    p,t,y2 = data.pred,data.targ,data.y2
    for avg in ('macro','micro','weighted',None): close(whole(f(average=avg), p, t), tensor(g(t, p.argmax(-1), average=avg)))
    close(whole(f(average='macro', labels=[2,5]), p, t), g(t, p.argmax(-1), average='macro', labels=[2,5]))
    close(whole(f(), p[:,:2], y2), g(y2, p[:,:2].argmax(-1)))
    close(whole(f(pos_label=0), p[:,:2], y2), g(y2, p[:,:2].argmax(-1), pos_label=0))
    for o in (p[:,:1], p[:,0]): close(whole(f(), o, y2), g(y2, p[:,0]>0))
    maps,pixels = p.view(20,10,10),t.view(20,10)
    close(whole(f(axis=1, average='macro'), maps, pixels), g(pixels.flatten(), maps.argmax(1).flatten(), average='macro'))
    never,gone = (torch.eye(3)[[0,0,1]],tensor(0,2,1)),(torch.eye(3)[[0,1,1]],tensor(0,1,0)) # class 2 is never called; is nowhere
    for pp,tt in (never,gone):
        for avg in ('macro','weighted'): close(f(average=avg)(pp, tt), g(tt, pp.argmax(-1), average=avg))
    close(f(average='macro', labels=[1,2])(*gone), g(gone[1], gone[0].argmax(-1), average='macro', labels=[1,2]))

def test_confusion_metrics(data):
    assert [o[0]().name for o in three]==['precision','recall','f1_score']
    assert (F1Score(name='x').name,F1Score().value)==('x',None)
    for dt in (torch.uint8,torch.int32,torch.float32): close(F1Score()(data.pred[:,:2], data.y2.to(dt)), F1Score()(data.pred[:,:2], data.y2))
    fails(F1Score, kwargs=dict(average='makro'), contains="'makro'")
    fails(F1Score(), args=(data.pred, data.targ), contains='is for two classes')
    for t in (tensor(0,1,255), tensor(0.,1.,.7)): fails(F1Score(), args=(data.pred[:3,:2], t), contains='1 target(s) that are no class from 0 to 1')
    fails(F1Score(), args=(data.pred[:3,:2], tensor(0,1,1), tensor(0,1,1)))

def test_roc_auc(data):
    p,t,y2 = data.pred,data.targ,data.y2
    close(roc_auc(p[:,0].round(decimals=1), y2), skm.roc_auc_score(y2, p[:,0].round(decimals=1)))
    assert [roc_auc(tensor(1.,2.,3.), o).item() for o in (tensor(0,0,1), tensor(1,0,0))]==[1,0]
    assert roc_auc(tensor(1.,2.), tensor(1,1)).isnan() and roc_auc(tensor(math.nan,1.,2.), tensor(0,1,0)).isnan()
    for avg in ('macro','weighted'): close(whole(RocAuc(average=avg), p, t), skm.roc_auc_score(t, p.softmax(-1), multi_class='ovr', average=avg))
    close(RocAuc(axis=1)(p, t), RocAuc()(p, t))
    close(whole(RocAuc(), p[:,:2], y2), skm.roc_auc_score(y2, p[:,:2].softmax(-1)[:,1]))
    for o,y in ((p[:,0],y2), (p[:,:1],y2), (p[:,:1],y2[:,None])): close(RocAuc()(o, y), skm.roc_auc_score(y2, p[:,0]))
    fails(RocAuc, kwargs=dict(average='wghted'), contains="'weighted'")

@pytest.mark.parametrize('c', [2,3])
def test_roc_auc_of_pixels(c):
    maps,pixels = torch.randn(6,c,4,3),torch.randint(c,(6,4,3))
    ps = maps.movedim(1, -1).flatten(0, -2).softmax(-1)
    want = skm.roc_auc_score(pixels.flatten(), ps if c>2 else ps[:,1], multi_class='ovr')
    for o,axis in ((maps,1), (maps.movedim(1, -1),-1)): close(whole(RocAuc(axis), o, pixels), want)

def test_overlap_of_shapes():
    mask,logits = torch.randint(2,(8,6,6)),torch.randn(8,2,6,6)
    for m,f in ((Dice,skm.f1_score), (JaccardCoeff,skm.jaccard_score)):
        close(whole(m(), logits, mask), f(mask.flatten(), logits.argmax(1).flatten()))
        close(m(axis=-1)(logits.movedim(1, -1), mask), m()(logits, mask))
        close(m()(logits[:,:1], mask), f(mask.flatten(), logits[:,0].flatten()>0))
    mask,logits = torch.randint(3,(8,6,6)),torch.randn(8,4,6,6)
    logits[:,3] = -9 # class 3 is nowhere
    for m,f in ((Dice,skm.f1_score), (JaccardCoeff,skm.jaccard_score)):
        close(m()(logits, mask), f(mask.flatten(), logits.argmax(1).flatten(), average='macro'))
    assert (Dice().value,Dice().name,JaccardCoeff().name,JaccardCoeff(name='iou').name)==(None,'dice','jaccard_coeff','iou')
    fails(Dice(), args=(logits, torch.full((8,6,6), 255)), contains='288 target(s) that are no class')

def test_r2_and_perplexity():
    x = torch.randn(200)
    y = 3*x + torch.randn(200)
    close(whole(R2Score(), 3*x, y), skm.r2_score(y, 3*x))
    m = Perplexity()
    m.reset()
    assert (m.value,m.name,R2Score().name)==(None,'perplexity','r2_score')
    for l,n in ((1.,3), (2.,1)): m.accumulate(NS(loss=torch.tensor(l), xb=(), yb=(torch.ones(n),)))
    close(m.value, torch.tensor(1.25).exp())

@pytest.mark.parametrize('dt', [torch.float16,torch.bfloat16], ids=str)
def test_sixteen_bits(data, dt):
    x = torch.randn(200)
    a,b = (300*x).to(dt),(300*x+torch.randn(200)).to(dt)
    close(whole(R2Score(), a, b), skm.r2_score(b.float(), a.float()))
    close(whole(skm_to_fastai(skm.r2_score, is_class=False), a, b), skm.r2_score(b.float(), a.float()))
    p = data.pred[:,:2].to(dt)
    close(RocAuc()(p, data.y2), RocAuc()(p.float(), data.y2))

def test_in_a_learner():
    dl = [(torch.randn(n,4),torch.randint(3,(n,))) for n in (30,30,7)]
    model = torch.nn.Linear(4,3)
    mets = [accuracy,error_rate,F1Score(average='macro'),F1Score(average='weighted'),RocAuc(),skm_to_fastai(skm.matthews_corrcoef),Perplexity]
    learn = Learner(NS(train=dl, valid=dl), model, metrics=mets, lr=0.)
    with learn.no_logging(): learn.fit(1)
    res,(xs,ys) = learn.history[-1],map(torch.cat, zip(*dl))
    out = model(xs).detach()
    for k,v in dict(accuracy=skm.accuracy_score(ys, out.argmax(-1)), f1_score=skm.f1_score(ys, out.argmax(-1), average='macro'),
        f1_score_2=skm.f1_score(ys, out.argmax(-1), average='weighted'), roc_auc_score=skm.roc_auc_score(ys, out.softmax(-1), multi_class='ovr'),
        matthews_corrcoef=skm.matthews_corrcoef(ys, out.argmax(-1)), perplexity=cross_entropy(out, ys).exp()).items(): close(res[k], v)

def test_a_ready_made_metric_is_copied_for_each_learner():
    learn,inner = synth_learner(metrics=[rmse,R2Score]),synth_learner(metrics=rmse)
    assert learn.metrics[0] is not rmse and learn.metrics.attrgot('name')==['rmse','r2_score']
    class Within(Callback):
        def after_batch(self):
            if not self.training: inner.validate()
    with learn.no_logging(): learn.fit(1, cbs=Within())
    close(learn.history[0]['rmse'], learn.history[0]['valid_loss']**.5)
    assert learn.metrics[0].preds==rmse.preds==[] # let go of after the fit
