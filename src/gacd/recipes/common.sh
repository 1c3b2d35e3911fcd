# What the recipes share. Each word below is one or a few `gacd ...` lines; `gacd reproduce table1 --dry-run true` prints them.
# Runs lie in $OUT/DATA/TEACHER/STUDENT/METHOD-SEED, the claim's in $OUT/claim, so that recipes find each other's.

teacher() { # DATA TEACHER: trained, made one file, evaluated
    run=$OUT/$1/$2/teacher
    gacd train $TEACHER --data "$1" --model "$2" --out "$run"
    gacd export "$run" --half true --out "$run.safetensors"
    gacd evaluate "$run" $EVALUATE
}

place() { # DATA TEACHER STUDENT [FOLDER]: what the next words work on
    data=$1 guide=$OUT/$1/$2/teacher.safetensors model=$3 runs=${4:-$OUT/$1/$2/$3}
}

distil() { # NAME SEED METHOD OPTIONS...
    run=$runs/$1-$2 seed=$2
    shift 2
    gacd distill "$@" --seed "$seed" --teacher "$guide" --model "$model" --out "$run"
    gacd evaluate "$run" $EVALUATE
}

train() { # NAME SEED METHOD OPTIONS...
    run=$runs/$1-$2 seed=$2
    shift 2
    gacd train "$@" --seed "$seed" --data "$data" --model "$model" --out "$run"
    gacd evaluate "$run" $EVALUATE
}

finetune() { # NAME SEED START OPTIONS...: AFT of the run START-SEED
    run=$runs/$1-$2 seed=$2 start=$runs/$3-$2
    shift 3
    gacd train $AFT "$@" --seed "$seed" --init "$start" --out "$run"
    gacd evaluate "$run" $EVALUATE
}

pair() { # TEACHER STUDENT, both as the paper calls them, and the rate of KD and GACD if it is another one
    place "$images" "$1" "$2"
    distil kd 0 $KD ${5-} $KD_EPOCHS
    distil ard 0 $ard $ARD_EPOCHS
    distil gacd 0 $GACD ${5-} $GACD_EPOCHS
    finetune gacd-aft 0 gacd $AFT_EPOCHS
    row "$table" "$3/$4/KD" "$runs/kd-0"
    row "$table" "$3/$4/ARD" "$runs/ard-0"
    row "$table" "$3/$4/GACD+AFT" "$runs/gacd-aft-0"
    row "$table" "$3/$4/GACD" "$runs/gacd-0"
}

seeded() { # TABLE CELL NAME: a row of all seeds' runs
    table=$1 cell=$2 name=$3
    set --
    for seed in $SEEDS; do set -- "$@" "$runs/$name-$seed"; done
    row "$table" "$cell" "$@"
}

. "$PRESET"
command -v row > /dev/null || row() { :; } # TABLE CELL RUN...: `gacd reproduce` prints it beside the paper's
