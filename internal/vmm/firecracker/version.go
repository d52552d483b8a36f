package firecracker

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
)

// version is a release of the monitor.
type version struct{ major, minor, patch int }

// releases is what this driver knows of each release line; src: the monitor's CHANGELOG.md.
var releases = []struct {
	minor int
	what  string
}{
	{12, "network_overrides when a snapshot is loaded; enable_diff_snapshots"},
	{13, "track_dirty_pages in place of enable_diff_snapshots; diff snapshots without tracking"},
	{14, "virtio-pmem, memory hotplug, vsock override"},
	{15, "diff snapshots of memory in several slots (over 3 GiB) are right"},
	{16, "hotplug of PCI devices"},
}

// oldest is the first release with all that this driver needs: network_overrides.
var oldest = version{1, 12, 0}

// newestMinor is the last release line that is known.
var newestMinor = releases[len(releases)-1].minor

// parseVersion reads what "firecracker --version" prints.
func parseVersion(out string) (version, error) {
	line, _, _ := strings.Cut(out, "\n")
	_, number, ok := strings.Cut(line, " v")
	number, _, _ = strings.Cut(strings.TrimSpace(number), "-") // 1.13.0-dev
	parts := strings.Split(number, ".")
	if !ok || len(parts) != 3 {
		return version{}, tartarus.Errorf(tartarus.Unsupported, "version %q is not one of Firecracker's", linux.Printable(line))
	}
	var n [3]int
	for i, p := range parts {
		var err error
		if n[i], err = strconv.Atoi(p); err != nil || n[i] < 0 {
			return version{}, tartarus.Errorf(tartarus.Unsupported, "version %q is not one of Firecracker's", linux.Printable(line))
		}
	}
	return version{n[0], n[1], n[2]}, nil
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch) }

func (v version) atLeast(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}

// check refuses a release that is too old, and warns of one that this driver has never seen.
func (v version) check() (warning string, err error) {
	if !v.atLeast(oldest.major, oldest.minor) {
		return "", tartarus.Errorf(tartarus.Unsupported, "Firecracker %s is too old: snapshots cannot get another network device; install %s or later", v, oldest)
	}
	if v.major != 1 || v.minor > newestMinor {
		return fmt.Sprintf("Firecracker %s is newer than 1.%d, the last that this program was written for", v, newestMinor), nil
	}
	return "", nil
}

// trackDirtyField is what a request to load a snapshot calls dirty page tracking.
func (v version) trackDirtyField() string {
	if v.atLeast(1, 13) {
		return "track_dirty_pages"
	}
	return "enable_diff_snapshots"
}

// diffLimitMB is the most memory of which a diff snapshot is right; 0 for no limit. x86-64 leaves a hole for devices below
// 4 GiB, so more than 3 GiB are in two slots, whose dirty pages were mixed up before 1.15.
func (v version) diffLimitMB() int64 {
	if v.atLeast(1, 15) {
		return 0
	}
	return 3 << 10
}
