# `make demo`, `make test`, `make study` and `make reproduce` first create .venv with all
# dependencies. STUDY="--seeds 5" passes options to the study.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)

DATA := data/phantom
DEMO := --data $(DATA) --name demo
PROSE := Makefile $(wildcard *.md *.py *.toml *.txt *.cff) data/README.md docs pylon tools tests \
  experiments benchmarks .github/*/*

.PHONY: demo test study reproduce clean

demo: .venv/ready
	test -f $(DATA)/PHANTOM.txt || \
	  $(BIN)/python tools/phantom/make_phantom.py --out $(DATA) --images 1500 --size 256 --seed 0
	$(BIN)/python train.py $(DEMO) --encoder-name tu-test_resnet --encoder-weights none \
	  --epochs 18 --batch-size 4 --lr 2e-3 --patience 4
	$(BIN)/python eval_auc.py $(DEMO)
	$(BIN)/python eval_loc.py $(DEMO)
	$(BIN)/python generate_heatmap.py $(DEMO) --out figs/demo
	@echo
	@echo "Done: trained without any bounding boxes, then evaluated with them. Results:"
	@echo "  figs/demo/all/1.jpg               heatmaps next to the radiographs, with the boxes"
	@echo "  csv/demo/auroc.png                AUROC per class (all tables: csv/demo/*.csv)"
	@echo "  csv/demo/point_localization.png   share of heatmaps whose maximum is inside the box"
	@echo "  csv/demo/box_localization.png     share of boxes that a region of the heatmap matches"
	@echo "  csv/demo/0.png                    how the training went; 0.csv, one row per epoch"
	@echo "  save/demo/0/best                  the best checkpoint: pylon.load_pylon('save/demo/0/best')"

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $(PROSE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 5 \
	  $(if $(PYLON_LONG),--cov)

study: .venv/ready
	$(BIN)/python experiments/study.py $(STUDY)

# The paper: check, train, score, draw, and make a folder to publish. After an interruption, the same
# command goes on: train.py resumes, and does nothing for a seed that has finished. Options of
# train.py alone go into TRAIN, those of the evaluations, too, such as --cache-size 1024, into RUN.
NAME := pylon
NIH := data
SEEDS := 0 1 2 3 4
REPO := user/$(NAME)
EXPERIMENT = --name $(NAME) --data $(NIH) $(RUN)

reproduce: .venv/ready
	$(BIN)/python tools/check_data.py --data $(NIH)
	for seed in $(SEEDS); do \
	  $(BIN)/python train.py $(EXPERIMENT) --seed $$seed $(TRAIN) || exit; \
	done
	$(BIN)/python eval_auc.py $(EXPERIMENT) --seeds $(SEEDS)
	$(BIN)/python eval_loc.py $(EXPERIMENT) --seeds $(SEEDS) --html
	$(BIN)/python generate_heatmap.py $(EXPERIMENT) --out figs/$(NAME)
	$(BIN)/python tools/publish.py --name $(NAME) --repo $(REPO)

# Changed requirements rebuild .venv, with the versions in requirements.lock. The package itself is
# installed in editable mode, so changes to its code do not.
WHAT := -r requirements.txt -e '.[test]' -c requirements.lock

.venv/ready: pyproject.toml requirements.txt requirements.lock
	rm -rf .venv
ifdef UV
	uv venv --python $(PYTHON) .venv
	uv pip install --python $(BIN)/python $(WHAT)
else
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(WHAT)
endif
	touch $@

clean:
	rm -rf .venv
