# The paper's networks; its schedules where it gives any, else the published ones of each method (gacd/configs). The hours in the
# recipes are operations, counted, over a rate that is assumed: nobody has run this preset yet.
RESNET18_T=resnet18 RESNET18=resnet18 WRN34_T=wrn-34-10 WRN34=wrn-34-10 MNV2=mobilenetv2
RESNET56_T=resnet56 RESNET32=resnet32 WRN40_T=wrn-40-2 WRN16=wrn-16-2 MNV2_100=mobilenetv2-x0.5

TEACHER="pgdat --config pgdat"
EVALUATE="--attacks pgd20 margin20"
TRANSFER="--attacks pgd7" TARGETS="stl10 cifar100"

STANDARD="standard --lr 0.1"
PGDAT="pgdat --config pgdat"
KD="kd --config kd"
ARD="ard --config ard"
ARD_100="ard --config ard"
RSLAD="rslad --config rslad"
ADAAD="adaad --config adaad"
IGDM="igdm --config igdm"
GACD="gacd --config gacd"
MNV2_RATE="--lr 0.01" # of KD and GACD on MobileNetV2, as in RepDistiller
HEAD="--solver adversarial --weight-decays 0.1 0.03 0.01"
AFT="pgdat --config aft"
# The recipe rates: GACD, ARD, PGD-AT, RSLAD.
HALF_RATES="0.025 0.05 0.05 0.05" DOUBLE_RATES="0.1 0.2 0.2 0.2" FOURFOLD_RATES="0.2 0.4 0.4 0.4"

# Equal total cost: GACD's 240 epochs and AFT's 25 cost what 286 epochs of PGD-AT do.
PGDAT_EPOCHS="--epochs 286 --milestones 143 215" AFT_ALONE="--epochs 25"
STANDARD_FIRST="--epochs 2000 --milestones 1500 1800" KD_FIRST="--epochs 1500 --milestones 750 1125"
ARD_FIRST="--epochs 250 --milestones 125 188" GACD_FIRST=

KD_EPOCHS= ARD_EPOCHS= GACD_EPOCHS= AFT_EPOCHS=
ANALYZE="--n 10000"
