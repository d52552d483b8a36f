# Every target works from a clean checkout on Debian with Go; test/prerequisites.sh names what is missing, and installs it with --install.
GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
STATICCHECK := v0.8.2
RUNSC       := $(shell $(GO) list -m -f '{{.Version}}' gvisor.dev/gvisor 2>/dev/null)
LDFLAGS     := -s -w -X main.version=$(VERSION) -X gvisor.dev/gvisor/runsc/version.version=$(RUNSC)
# One set of flags for everything, so that programs and tests share the build cache: compiling gVisor takes minutes.
export CGO_ENABLED := 0
export GOFLAGS     := -trimpath
export TARTARUS_BIN := $(CURDIR)/bin/tartarus

.PHONY: test-law test-hypnos build embedded demo test prerequisites lint test-race fuzz test-host test-vm test-kvm test-e2e test-integrity test-sdk test-sdk-quick test-fleet soak stack stack-smoke bench clean

build: embedded ## bin/tartarus, with the guest agent and the tiny userland inside
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/tartarus ./cmd/tartarus

embedded:
	GO=$(GO) internal/image/embedded/build.sh

demo: ## from set-up to a cleaned-up sandbox, with the time of each step
	@test/demo.sh

# The order is that of a person in a hurry: what fails most often and fastest comes first.
test: prerequisites build lint test-race fuzz test-host test-vm test-law test-e2e stack-smoke test-sdk-quick ## everything; needs root

prerequisites:
	@test/prerequisites.sh

lint: embedded ## formatting, vet on both processors, staticcheck, known vulnerabilities
	@files=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$files" || { echo "gofmt: $$files"; exit 1; }
	$(GO) vet ./...
	GOARCH=arm64 $(GO) build ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK) ./...
	test/vuln.sh

# Packages that pull gVisor in are tested without the race detector: it would be compiled anew, and the sandbox kernel does not run under it.
GVISOR = $(shell $(GO) list -test -f '{{.ImportPath}} {{join .Deps " "}}' ./... | grep -F gvisor.dev/gvisor | sed 's/[ .]test.*//; s/_test .*//; s/ .*//' | sort -u)
PLAIN   = $(filter-out $(GVISOR) %/internal/vmm/qemu %/test/e2e %/test/script %/internal/network, $(shell $(GO) list ./...))

# Built with all processors, run one package after the other: suites that race leases and deadlines need the processor they were promised.
test-race: embedded ## unit tests and store conformance, with the race detector
	CGO_ENABLED=1 $(GO) test -race -run '^$$' $(PLAIN) >/dev/null
	CGO_ENABLED=1 $(GO) test -race -p 1 -timeout 15m $(PLAIN)

# These change the host's network and control groups: one package after the other.
test-host: build ## drivers, network and what is built upon them
	$(GO) test -p 1 -timeout 15m ./internal/network/... $(GVISOR)

# Prints, for each promise of a driver, which runtime kept it; all the rest only when something fails.
test-vm: build ## virtual machines: real monitors under their jails, with a Linux guest where the host can run one
	@./dev-setup.sh kernel || echo "no kernel for virtual machines: what needs one is skipped" >&2
	@log=$$(mktemp); $(GO) test -p 1 -timeout 45m -count 1 -v ./internal/vmm/firecracker ./internal/vmm/qemu >$$log 2>&1 && \
	$(GO) test -timeout 15m -count 1 -v -run '^TestMicro' ./internal/hecatoncheir >>$$log 2>&1; rc=$$?; \
	if [ $$rc = 0 ]; then grep -E '^ +vmmtest.go:[0-9]+: row |^--- SKIP|^ +[a-z_]+.go:[0-9]+: (driver|needs|test/)|^(ok|FAIL)' $$log; else cat $$log; fi; rm -f $$log; exit $$rc

# Needs /dev/kvm of real hardware, root, and firecracker with jailer; where that is missing every test of it is skipped and says why.
test-kvm: build ## Firecracker with Linux guests, where KVM can run one: the driver's promises, and a sandbox's life through the API
	@./dev-setup.sh kernel || echo "no kernel for virtual machines" >&2
	@PATH="$$(test/firecracker.sh):$$PATH" bin/tartarus doctor | grep -E '/dev/kvm|firecracker' || true
	@log=$$(mktemp); rc=0; \
	$(GO) test -timeout 20m -count 1 -v -run '^TestLinuxGuest$$' ./internal/vmm/firecracker >$$log 2>&1 || rc=1; \
	PATH="$$(test/firecracker.sh):$$PATH" TARTARUS_TEST_RUNTIME=firecracker $(GO) test -timeout 20m -count 1 -v -run '^TestVirtualMachine$$' ./test/e2e >>$$log 2>&1 || rc=1; \
	if [ $$rc = 0 ] && grep -q '^--- SKIP' $$log; then grep -vE '^(PASS|ok)' $$log; echo "test-kvm: skipped, which is no pass: the reasons are above"; else cat $$log; fi; \
	rm -f $$log; exit $$rc

LAW = route x role|noticed:|quota of 10|in force on three|^--- (PASS|FAIL|SKIP): Test(Roles|Token|AuditArchive|Archive|Segments|Login|People|Signed|Provenance|Quota|Polic|Tamper|Check|Key|Crash|Retention|NoSecret|Nothing|Quarantine)|needs |^(ok|FAIL)
# Prints what was counted and noticed; all the rest only when something fails.
test-law: build ## who may come in, roles on every route, provenance, policies, quotas on both stores, the audit log under tampering, quarantine
	@log=$$(mktemp); { \
	  $(GO) test -count 1 -v ./internal/audit ./internal/themis ./internal/judges ./internal/tenant ./internal/quota ./internal/login && \
	  $(GO) test -count 1 -v -run '^Test(Signed|SignaturesUnknown|BadKeys|Provenance)' ./internal/image ./internal/image/oci && \
	  $(GO) test -count 1 -v -run 'Role|Exec|Lists|References|Polic|Quota|Record|Secret|Audit|Tenant|Key|People|Person|Provenance|Resume|Quarantine' ./internal/olympus && \
	  $(GO) test -count 1 -v -run '^Test(Quotas|Reload|Policies|Shelf|Keys)$$' ./internal/store/sqlite && \
	  $(GO) test -count 1 -v -run '^TestSuites$$/^(quotas|reload|policies|shelf|keys)$$' ./internal/store/redis && \
	  $(GO) test -count 1 -v -timeout 10m -run '^Test(Quarantine|Login|Signed|AuditArchive)' ./test/e2e; } >$$log 2>&1; rc=$$?; \
	if [ $$rc = 0 ]; then grep -E '$(LAW)' $$log; else cat $$log; fi; rm -f $$log; exit $$rc

test-e2e: build ## the built program as its users run it
	$(GO) test -p 1 -timeout 30m -count 1 ./test/e2e ./test/script

FUZZTIME ?= 3s
fuzz: ## every fuzz target for FUZZTIME, from its saved corpus
	GO=$(GO) test/fuzz.sh $(FUZZTIME)

test-integrity: build ## 20 cycles of pause and resume under a server that is killed, everything hashed
	TARTARUS_INTEGRITY_CYCLES=20 $(GO) test -timeout 30m -count 1 -v -run '^TestIntegrity$$' ./test/e2e

SLEEPERS ?= 200
test-hypnos: build ## SLEEPERS sandboxes put to sleep, at the cost of disk alone, across a killed server, and woken
	TARTARUS_E2E_SLEEPERS=$(SLEEPERS) $(GO) test -timeout 30m -count 1 -v -run '^TestManySleepers$$' ./test/e2e

test-sdk: build ## every method of the published SDKs, newest and older releases
	$(GO) run ./test/sdk

test-sdk-quick: build ## the main job by the newest SDKs
	$(GO) run ./test/sdk --quick

test-fleet: build ## control plane and nodes apart: sessions, stores on Redis and on a Cluster, two nodes cut off and healed
	$(GO) test -p 1 -timeout 15m -count 1 ./internal/link ./internal/store/redis
	$(GO) test -timeout 15m -count 1 -v -run . ./test/fleet

# Fifty rounds of what each run of the tests does once: clients that give up, holders that die or stand still past their leases, connections that
# are cut. Every history is checked for whether it could have happened one operation after the other.
SOAK := TARTARUS_LONG_TESTS=1 $(GO) test -p 1 -timeout 2h -count 1 -v
soak: ## queue and registry under faults for minutes, on SQLite, Redis and a Cluster
	$(SOAK) -run '^Test(Queue|Registry)$$/histories' ./internal/store/sqlite
	$(SOAK) -run '^Test(Suites|Cluster)$$/(queue|registry)/histories|^Test(HistoriesWithLostConnections|Failover|Promotion|Sentinel)$$' ./internal/store/redis

stack: build ## the developer stack of docker-compose.yml by hand, until Ctrl-C
	$(GO) run ./test/stack

stack-smoke: build ## the same on free ports, used and taken down; and its agreement with docker-compose.yml
	$(GO) test -count 1 ./test/stack
	$(GO) run ./test/stack --smoke

bench: build ## create, exec and edge against their floors; judges and the audit log
	bin/tartarus bench create --n 50 --json
	bin/tartarus bench exec --json
	bin/tartarus bench edge --json
	bin/tartarus bench judges --json

clean:
	rm -rf bin internal/image/embedded/bin/tartarus-*
