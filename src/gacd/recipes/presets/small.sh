# Two CPU cores: every family of networks, shrunk; PGD-2 instead of PGD-10 in training; a tenth or less of the epochs. All
# 10,000 test images. The trainings took 34 core-hours (claim 8.2, rates 5.8), thirteen of them in float32;
# what was withdrawn (docs/results.md) comes on top.
RESNET18_T=resnet20 RESNET18=resnet8 WRN34_T=wrn-16-1 WRN34=wrn-10-1 MNV2=mobilenetv2-x0.1
RESNET56_T=resnet20 RESNET32=resnet8 WRN40_T=wrn-16-1 WRN16=wrn-10-1 MNV2_100=mobilenetv2-x0.1

cycle="--schedule onecycle" attack="--steps 2 --step-size 5/255"
TEACHER="nfgsm --epochs 15 --lr 0.2 $cycle"
EVALUATE="--attacks pgd20 margin20"
TRANSFER="--attacks pgd7" TARGETS=cifar100 # stl10 has no files here

# ARD's and RSLAD's losses divide by the number of classes: ten times the rate and a tenth of the decay are the same step.
STANDARD="standard --lr 0.2 $cycle"
PGDAT="pgdat --lr 0.2 $cycle $attack"
KD="kd --lr 0.2 $cycle"
ARD="ard --temperature 1 --lr 2 --weight-decay 5e-5 $cycle $attack"
ARD_100="ard --temperature 1 --lr 20 --weight-decay 5e-6 $cycle $attack"
RSLAD="rslad --lr 2 --weight-decay 5e-5 $cycle $attack"
ADAAD="adaad --lr 0.2 $cycle $attack"
IGDM="igdm --lr 0.2 $cycle $attack"
GACD="gacd --lr 0.1 $cycle $attack" MNV2_RATE=
HEAD="--solver adversarial --weight-decays 0.1 0.03 0.01 --epochs 1 --steps 2 --step-size 5/255"
AFT="pgdat --lr 0.2 $cycle $attack"
# The recipe rates: GACD, ARD, PGD-AT, RSLAD.
HALF_RATES="0.05 1 0.1 1" DOUBLE_RATES="0.2 4 0.4 4" FOURFOLD_RATES="0.4 8 0.8 8"

# The claim's row: equal total cost, that of so many epochs of PGD-AT; what is fine-tuned leaves four of them for that.
PGDAT_EPOCHS="--epochs 13" AFT_ALONE="--epochs 4"
STANDARD_FIRST="--epochs 21" KD_FIRST="--epochs 10" ARD_FIRST="--epochs 6" GACD_FIRST="--epochs 5"

# Everywhere else, one seed and shorter.
KD_EPOCHS="--epochs 5" ARD_EPOCHS="--epochs 4" GACD_EPOCHS="--epochs 3" AFT_EPOCHS="--epochs 2"
ANALYZE="--n 1000"
