# Two commands on a fresh machine with Python >= 3.11, a compiler or none, and no root: `make run` and `make test`.
# Everything is installed into .venv in this checkout; nothing outside it is touched.

# The first Python on PATH that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet
PURE = .venv-pure
BUILT_FROM = pyproject.toml setup.py $(wildcard csrc/*.[ch] src/qcthreads/host/*.p[xy][xdi])
PYTEST_ARGS ?=
RESULTS ?=
# $(call pytest,PYTHON,NAME): with RESULTS, what came out is written to RESULTS/NAME.xml.
pytest = $(1) -m pytest --timeout 900 $(PYTEST_ARGS) $(if $(RESULTS),--junitxml=$(RESULTS)/$(2).xml --durations=15)

.PHONY: run test pure vm fuzz coverage lint lint-ruff lint-format lint-types lint-layers lint-c \
	lint-types-linux lint-types-darwin lint-types-win32 docs measured bench clean

run: $(VENV)/.all
	$(BIN)/qcthreads run examples/water16.xyz --program pyscf --method mp2 --basis cc-pvdz --max-nbody 2

# $(call in_two,PYTHON,NAME,AND): those that need no CPU for themselves side by side, four on two CPUs, as half of their
# time they wait for something else; then the others. Status 5: PYTEST_ARGS select none of them.
in_two = failed=0; \
	$(call pytest,$(1),$(2)-beside) -n 4 --dist loadfile -m 'beside$(3)' || [ $$? = 5 ] || failed=1; \
	$(call pytest,$(1),$(2)) -m 'not vm and not beside$(3)' || [ $$? = 5 ] || failed=1; \
	exit $$failed

test: $(VENV)/.test
	$(call in_two,$(BIN)/python,test)

# The same tests without the extension, on a package that was built pure, and with what else is in $(VENV); but for those
# that are long and the same, or are of both back ends.
SITE = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
pure: $(VENV)/.test | $(PURE)/bin/python
	rm -rf build/lib build/bdist.*  # else modules that are no more would be packed again
	$(BIN)/python $(SITE) >"$$($(PURE)/bin/python $(SITE))/beside.pth"
	QCTHREADS_PURE=1 $(PURE)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --force-reinstall \
		--no-build-isolation .
	$(call in_two,$(PURE)/bin/python,pure, and not once)

# Boots machines that are not here; needs QEMU and a kernel: tests/vm/numa_vm.py --setup (Debian, root). Takes minutes.
vm: $(VENV)/.test
	$(call pytest,$(BIN)/python,vm) --timeout 1800 -m vm tests/vm

# The C parsers under libFuzzer and the sanitizers; needs clang and its run-time libraries (Debian: clang libclang-rt-dev).
FUZZ_SECONDS ?= 60
fuzz:
	nice $(PYTHON) tests/fuzz/run.py $(FUZZ_SECONDS)  # what is installed meanwhile goes first

coverage: $(VENV)/.test
	$(call pytest,$(BIN)/python,coverage) --cov --cov-report=term:skip-covered

# `make --keep-going lint` reports on all of them.
lint: lint-ruff lint-format lint-types lint-layers lint-c

lint-ruff: $(VENV)/.lint
	$(BIN)/ruff check .

lint-format: $(VENV)/.lint
	$(BIN)/ruff format --check .

LINT_TYPES = $(addprefix lint-types-,linux darwin win32)
lint-types: $(LINT_TYPES)
$(LINT_TYPES): lint-types-%: $(VENV)/.lint  # a cache each: mypy checks everything again when the platform is another
	$(BIN)/mypy --platform $* --cache-dir .mypy_cache/$*

lint-layers: $(VENV)/.lint
	$(BIN)/lint-imports

lint-c: $(VENV)/.lint
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.[ch] csrc/tests/*.[ch] tests/fuzz/*.c)

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html

# What the pages of the programs tell, measured anew, for those that are installed; for a machine that does nothing else.
measured: $(VENV)/.test
	$(BIN)/python docs/measure_programs.py

bench: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds
	failed=; for benchmark in benchmarks/bench_*.py; do \
		echo "== $$benchmark"; $(BIN)/python $$benchmark || failed="$$failed $$benchmark"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

# One stamp per extra: .all, .test, .lint, .docs; and for those that are in it.
WITHIN_lint = test all
WITHIN_test = all
$(VENV)/.all $(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(BUILT_FROM) | $(BIN)/python
	$(PIP) --editable '.[$*]'
	touch $(addprefix $(VENV)/.,$* $(WITHIN_$*))

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 on PATH; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(PURE)/bin/python: | $(BIN)/python
	$(BIN)/python -m venv --without-pip $(PURE)  # that of $(VENV) serves

clean:
	rm -rf $(VENV) $(PURE) build docs/_build .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
