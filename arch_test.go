package tartarus_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tartarus-sandbox/tartarus"

// allowed is the direction of imports inside this module: who may import what, and why. "." is the root package, which
// everybody may import. A trailing /... covers a subtree. Test files may import anything.
var allowed = []struct{ from, to, reason string }{
	{"cmd/tartarus", "internal/cli", "the program is its command line"},
	{"cmd/tartarus", "internal/vmm/gvisor", "the program re-executes itself as the gVisor sandbox, before anything else runs"},
	{"cmd/tartarus-guest", "internal/guest/...", "the agent is its library"},

	{"client", "api", "the public client speaks the wire"},
	{"internal/cli", "api", "what the client returns is printed"},

	{"internal/cli", "client", "the command line is a client of the public API"},
	{"internal/cli", "internal/daemon", "up, and run without a server, start the stack in-process"},
	{"internal/cli", "internal/doctor", "doctor is a verb"},
	{"internal/cli", "internal/kernel", "kernels are looked at on this machine"},
	{"internal/cli", "internal/image/...", "templates are built on this machine"},
	{"internal/cli", "internal/guest/guestclient", "exec, cp and logs talk to the guest agent"},
	{"internal/cli", "internal/guest/hostapi", "help says where a guest's hooks lie"},
	{"internal/cli", "internal/themis", "policies are tested without a server"},
	{"internal/cli", "internal/audit", "a folder of records is verified without a server"},
	{"internal/cli", "internal/bench", "bench is a verb"},
	{"internal/cli", "internal/vmm", "leftovers are printed"},
	{"internal/bench", "*", "a benchmark holds every layer against its floor"},

	{"internal/daemon", "*", "the one place that chooses stores and runtimes"},
	{"internal/doctor", "internal/kvm", "KVM is judged by running a guest"},
	{"internal/doctor", "internal/vmm", "drivers say whether they are usable"},
	{"internal/doctor", "internal/network", "the packet filter is tried by its owner"},

	{"internal/olympus", "internal/acheron", "creates are queued"},
	{"internal/olympus", "internal/audit", "what clients do is recorded before it is done"},
	{"internal/olympus", "internal/hades", "sandboxes and nodes are looked up"},
	{"internal/olympus", "internal/judges", "creates are judged"},
	{"internal/olympus", "internal/phlegethon", "creates are placed"},
	{"internal/olympus", "internal/snapshot", "what names a snapshot may have"},
	{"internal/olympus", "internal/shelf", "tenants are kept there"},
	{"internal/tenant", "internal/shelf", "tenants and the uses of keys are small shared records"},
	{"internal/olympus", "internal/tenant", "requests are authenticated"},
	{"internal/olympus", "internal/login", "people come with ID tokens"},
	{"internal/login", "internal/tenant", "what a token is worth is a role in a tenant"},
	{"internal/olympus", "internal/secret", "secrets are kept for tenants"},
	{"internal/olympus", "internal/volume", "volumes are kept for tenants"},
	{"internal/olympus", "internal/identity", "what checks identity tokens is published"},
	{"internal/judges", "internal/identity", "policies see which secrets a request names"},
	{"internal/olympus", "api", "the bodies of the API"},
	{"internal/olympus", "internal/recent", "keys and templates are not read for each request"},
	{"internal/olympus/olympustest", "*", "a whole control plane for tests of it, of the edge and of the client"},
	{"internal/edge", "internal/recent", "sandboxes are not looked up for each request"},
	{"internal/edge", "internal/audit", "what is done in sandboxes is recorded before it is done"},
	{"internal/edge", "internal/olympus", "guests are dialled through the fleet, as the API sees it"},
	{"internal/edge", "internal/hades", "a host name leads to a sandbox"},
	{"internal/edge", "internal/guest/hostapi", "routes for the host are not carried"},
	{"internal/audit", "internal/shelf", "heads and checkpoints are shared by the replicas"},
	{"internal/judges", "internal/themis", "Rhadamanthus asks the policies"},
	{"internal/olympus", "internal/themis", "policies are applied and explained"},
	{"internal/judges", "internal/tenant", "quotas are a tenant's"},
	{"internal/judges", "internal/quota", "Minos counts what tenants hold"},
	{"internal/quota", "internal/hades", "what has ended is told by the registry"},
	{"internal/quota", "internal/shelf", "what is held is a small shared record"},
	{"internal/quota", "internal/tenant", "quotas are a tenant's"},
	{"internal/olympus", "internal/quota", "what a tenant holds is shown"},
	{"internal/store/storetest", "internal/quota", "the ledger is tested on every store that replicas share"},
	{"internal/phlegethon", "internal/hades", "nodes are placed on"},

	{"internal/hecatoncheir", "internal/acheron", "work is leased"},
	{"internal/hecatoncheir", "internal/hades", "the node registers itself"},
	{"internal/hecatoncheir", "internal/network", "sandboxes get slots"},
	{"internal/hecatoncheir", "internal/snapshot", "paused sandboxes are snapshots"},
	{"internal/hecatoncheir", "internal/vmm", "sandboxes get machines"},
	{"internal/hecatoncheir", "internal/typhon", "what sandboxes do is watched for strikes"},
	{"internal/hecatoncheir", "internal/phlegethon", "whoever claims a machine that waits says how hot it is"},
	{"internal/hecatoncheir", "internal/hypnos", "idle sandboxes are put to sleep"},
	{"internal/hecatoncheir", "internal/thanatos", "sandboxes end by its ladder"},
	{"internal/hecatoncheir", "internal/guest/guestclient", "the agent in the guest is told who it is"},
	{"internal/hecatoncheir", "internal/warm", "sandboxes claim machines that wait"},
	{"internal/warm", "internal/phlegethon", "demand says how many wait"},

	{"internal/network", "internal/vmm", "a slot yields the guest's interface"},
	{"internal/network/...", "internal/network/...", "slots, names and the web gate are one thing in several parts"},
	{"internal/network", "internal/network/...", "what serves a slot has its rules as policy"},
	{"internal/vmm/gvisor", "internal/vmm", "adapter of the seam"},
	{"internal/vmm/gvisor", "internal/vmm/cgroup", "limits"},
	{"internal/vmm/gvisor", "internal/vmm/process", "sandbox processes are held by descriptor"},
	{"internal/vmm/gvisor", "internal/vmm/manifest", "what a snapshot is and fits"},
	{"internal/vmm/gvisor", "internal/vmm/leftovers", "what an earlier process left behind"},
	{"internal/vmm/gvisor", "internal/vmm/life", "how sandbox processes end, and whose turn it is"},
	{"internal/vmm/gvisor", "internal/vmm/netns", "sandbox processes are started in their slot's namespace"},
	{"internal/vmm/gvisor/sandbox", "internal/vmm/gvisor", "the floor of benchmarks and the test program boot through it"},
	{"internal/vmm/firecracker", "internal/vmm", "adapter of the seam"},
	{"internal/vmm/firecracker", "internal/vmm/cgroup", "limits"},
	{"internal/vmm/firecracker", "internal/vmm/process", "monitors are held by descriptor"},
	{"internal/vmm/firecracker", "internal/vmm/manifest", "what a snapshot is and fits"},
	{"internal/vmm/firecracker", "internal/vmm/leftovers", "what an earlier process left behind"},
	{"internal/vmm/firecracker", "internal/vmm/life", "how monitors end, and whose turn it is"},
	{"internal/vmm/firecracker", "internal/vmm/netns", "monitors attach to their slot's TAP device as a user of their own"},
	{"internal/vmm/firecracker", "internal/vmm/users", "a user for each monitor"},
	{"internal/vmm/firecracker", "internal/vmm/linux", "its guest is Linux"},
	{"internal/vmm/firecracker", "internal/vmm/disk", "writable disks"},
	{"internal/vmm/firecracker", "internal/vmm/pagefault", "memory may be brought in by a process of its own"},
	{"internal/vmm/firecracker", "internal/kvm", "KVM is judged by running a guest"},
	{"cmd/tartarus", "internal/vmm/pagefault", "the program re-executes itself as the page-fault handler, before anything else runs"},
	{"cmd/tartarus", "internal/snapshot/remote", "what the page-fault handler reads may be in an object store"},
	{"internal/snapshot/remote", "internal/snapshot", "links to chunks are its own"},
	{"internal/snapshot/remote", "internal/vmm/pagefault", "a source of memory for its process"},
	{"cmd/tartarus", "internal/vmm/qemu", "the program re-executes itself to shut QEMU in, before anything else runs"},
	{"internal/vmm/qemu", "internal/vmm", "adapter of the seam"},
	{"internal/vmm/qemu", "internal/vmm/cgroup", "limits"},
	{"internal/vmm/qemu", "internal/vmm/disk", "writable layers"},
	{"internal/vmm/qemu", "internal/vmm/linux", "the guest is Linux"},
	{"internal/vmm/qemu", "internal/vmm/manifest", "what a snapshot is and fits"},
	{"internal/vmm/qemu", "internal/vmm/leftovers", "what an earlier process left behind"},
	{"internal/vmm/qemu", "internal/vmm/life", "how QEMU processes end, and whose turn it is"},
	{"internal/vmm/qemu", "internal/vmm/netns", "the TAP device is in the slot's namespace"},
	{"internal/vmm/qemu", "internal/vmm/process", "QEMU processes are held by descriptor"},
	{"internal/vmm/qemu", "internal/vmm/users", "each QEMU has a user of its own"},
	{"internal/vmm/qemu", "internal/kvm", "KVM is judged by running a guest"},
	{"internal/vmm/life", "internal/vmm", "what a machine's end is, and what it uses"},
	{"internal/vmm/life", "internal/vmm/cgroup", "what the kernel kills in a group ends the machine"},
	{"internal/vmm/life", "internal/vmm/process", "processes are held by descriptor"},
	{"internal/vmm/leftovers", "internal/vmm", "how they are reported"},
	{"internal/vmm/leftovers", "internal/vmm/cgroup", "groups are among them"},
	{"internal/vmm/leftovers", "internal/vmm/process", "processes too, ended by descriptor"},
	{"internal/vmm/linux", "internal/vmm", "a machine's configuration is what its guest is told"},
	{"internal/vmm/linux", "internal/kernel", "guests boot a prepared kernel"},
	{"internal/vmm/linux", "internal/guest/handover", "what a guest is told before its agent can be reached"},
	{"internal/vmm/linux", "internal/guest/vmboot", "what a guest says on its console"},
	{"internal/vmm/fake", "internal/vmm", "adapter of the seam"},
	{"internal/vmm/vmmtest", "internal/vmm", "the conformance suite of the seam"},
	{"internal/vmm/vmmtest/...", "internal/vmm/...", "the conformance suite of the seam"},

	{"test/sdk", "test/outside", "the servers that network options are tested against"},

	{"internal/link", "internal/acheron", "work is leased through it"},
	{"internal/link", "internal/hades", "nodes register and report through it"},
	{"internal/link", "internal/olympus", "a node elsewhere is a node to the API"},
	{"internal/link", "internal/typhon", "strikes are told over sessions"},
	{"internal/link", "internal/hecatoncheir", "what nodes report reaches the registry as from a node beside it"},

	{"internal/store/...", "internal/acheron", "adapter of the seam"},
	{"internal/store/storetest", "internal/link", "the suite of its vault"},
	{"internal/store/...", "internal/hades", "adapter of the seam"},
	{"internal/store/...", "internal/shelf", "adapter of the seam"},
	{"internal/store/...", "internal/tenant", "adapter of the seam"},
	{"internal/store/...", "internal/themis", "adapter of the seam"},
	{"internal/store/...", "internal/secret", "adapter of the seam"},
	{"internal/store/...", "internal/volume", "adapter of the seam"},
	{"internal/store/...", "internal/snapshot", "adapter of the seam"},
	{"internal/store/s3/s3test", "internal/store/s3", "a real server for tests of the store and of snapshots"},

	{"internal/guest/...", "internal/guest/...", "one agent in several parts"},
	{"internal/guest/...", "internal/volume/wire", "files of a mounted volume come from the node"},
	{"internal/volume", "internal/volume/wire", "guests ask for files"},
	{"internal/guest/...", "api/gen/...", "the agent speaks the wire"},
	{"internal/image/...", "internal/image/...", "one image builder in several parts"},
	{"api/gen/...", "api/gen/...", "generated code"},
}

// forbidden are outside modules that must stay where they are, with the reason.
var forbidden = []struct{ prefix, except, reason string }{
	{"gvisor.dev/gvisor", "internal/vmm/gvisor", "31 MB and minutes of compiling: only the driver may pull it in"},
	{"modernc.org/sqlite", "internal/store/sqlite", "a store's library stays behind its seam"},
	{"github.com/redis/go-redis", "internal/store/redis", "a store's library stays behind its seam"},
	{"github.com/aws/aws-sdk-go-v2", "internal/store/s3", "a store's library stays behind its seam"},
	{"github.com/google/nftables", "internal/network", "one owner of the packet filter"},
	{"github.com/hashicorp/yamux", "internal/link", "how streams share a connection is the link's own affair"},
	{"github.com/prometheus/", "internal/telemetry", "who counts knows an interface of his own, not a library"},
	{"github.com/coreos/go-oidc", "internal/login", "tokens of people are looked at in one place"},
	{"cel.dev/cel-go", "internal/themis", "expressions belong to policies"},
	{"github.com/spf13/cobra", "internal/cli", "verbs live in the command line"},
}

func TestImportDirection(t *testing.T) {
	used := make([]bool, len(allowed))
	for dir, imports := range packages(t) {
		for _, imp := range imports {
			to, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				checkOutside(t, dir, imp)
				continue
			}
			ok := false
			for i, rule := range allowed {
				if covers(rule.from, dir) && (rule.to == "*" || covers(rule.to, to)) {
					ok, used[i] = true, true
				}
			}
			if !ok {
				t.Errorf("%s imports %s: not in the table of allowed imports", dir, to)
			}
		}
	}
	for i, rule := range allowed {
		if !used[i] {
			t.Errorf("rule %s -> %s allows what nobody does: take it out", rule.from, rule.to)
		}
	}
}

func checkOutside(t *testing.T, dir, imp string) {
	for _, f := range forbidden {
		if strings.HasPrefix(imp, f.prefix) && dir != f.except && !strings.HasPrefix(dir, f.except+"/") && dir != "internal/bench" {
			t.Errorf("%s imports %s: %s", dir, imp, f.reason)
		}
	}
}

func covers(pattern, path string) bool {
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == tree || strings.HasPrefix(path, tree+"/")
	}
	return pattern == path
}

// packages maps each package folder of this module to what its non-test files import.
func packages(t *testing.T) map[string][]string {
	out := map[string][]string{}
	walkGo(t, func(path string, isTest bool) {
		if isTest {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		for _, imp := range f.Imports {
			if p := strings.Trim(imp.Path.Value, `"`); p != module && !slices.Contains(out[dir], p) {
				out[dir] = append(out[dir], p)
			}
		}
	})
	return out
}

func walkGo(t *testing.T, visit func(path string, isTest bool)) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "node_modules" || d.Name() == "data") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".go") {
			visit(path, strings.HasSuffix(path, "_test.go"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestEveryPackageIsDocumented holds that a reader who opens any folder finds one sentence that says what it is.
func TestEveryPackageIsDocumented(t *testing.T) {
	documented := map[string]bool{}
	walkGo(t, func(path string, isTest bool) {
		dir := filepath.ToSlash(filepath.Dir(path))
		if isTest || strings.HasPrefix(dir, "api/gen") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		documented[dir] = documented[dir] || f.Doc != nil && len(f.Doc.Text()) > 40
	})
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}
