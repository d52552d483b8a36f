package firecracker

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
)

var _ vmm.Examiner = (*Driver)(nil)

// getPrograms is the next step of whoever has no Firecracker.
const getPrograms = "./dev-setup.sh gets both into data/firecracker; or put firecracker and jailer of one release into the data folder's firecracker folder or into PATH"

// Examine implements vmm.Examiner.
func (d *Driver) Examine(ctx context.Context) []vmm.Finding {
	return []vmm.Finding{d.examineJailer(ctx), d.examineUsers("/"), d.examineSerial(), d.examineFaults(pagefault.Available())}
}

// examineJailer looks at the program that is root when it starts each monitor: whoever can change it is root too.
func (d *Driver) examineJailer(ctx context.Context) vmm.Finding {
	f := vmm.Finding{Name: "jailer"}
	if d.cfg.Jailer == "" {
		f.Detail, f.Fix = "not installed: no Firecracker machine starts without it", getPrograms
		return f
	}
	var st unix.Stat_t
	if err := unix.Stat(d.cfg.Jailer, &st); err != nil {
		f.Detail, f.Fix = fmt.Sprintf("%s: %v", d.cfg.Jailer, err), getPrograms
		return f
	}
	v, err := askVersion(ctx, d.cfg.Jailer)
	switch {
	case err != nil:
		f.Detail, f.Fix = err.Error(), getPrograms
	case st.Uid != 0 || st.Mode&0o022 != 0:
		f.Detail = fmt.Sprintf("%s is user %d's with mode %o: others than root can change what runs as root", d.cfg.Jailer, st.Uid, st.Mode&0o777)
		f.Fix = "chown root " + d.cfg.Jailer + " && chmod 755 " + d.cfg.Jailer
	default:
		f.Detail = v.String() + ": every monitor has a user, a root folder, namespaces and a control group of its own"
	}
	return f
}

// examineUsers makes sure that the users of monitors are nobody else's.
func (d *Driver) examineUsers(root string) vmm.Finding {
	r := d.cfg.Users
	last := r.First + r.Count - 1
	f := vmm.Finding{Name: "users of monitors", Detail: fmt.Sprintf("%d to %d, one for each monitor", r.First, last)}
	for _, file := range []struct {
		path        string
		first, size int // fields; size -1 is one
	}{{"etc/passwd", 2, -1}, {"etc/group", 2, -1}, {"etc/subuid", 1, 2}, {"etc/subgid", 1, 2}} {
		if who := overlap(root+file.path, file.first, file.size, r.First, last); who != "" {
			f.Detail = fmt.Sprintf("%d to %d are not free: %s in /%s has some of them", r.First, last, who, file.path)
			f.Fix = "give " + who + " other numbers: a monitor that is broken out of would be that user"
			return f
		}
	}
	if !mapped(root+"proc/self/uid_map", r.First, last) {
		f.Detail = fmt.Sprintf("%d to %d are not all in this user namespace", r.First, last)
		f.Fix = "run on the host itself, or in a container without a user namespace of its own"
	}
	return f
}

// overlap names who in a file of lines with colons has a number from first to last; "" when nobody has, or there is no such file.
func overlap(path string, begin, size, first, last int) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	for sc := bufio.NewScanner(file); sc.Scan(); {
		fields := strings.Split(sc.Text(), ":")
		if len(fields) <= max(begin, size) {
			continue
		}
		from, err := strconv.Atoi(fields[begin])
		n := 1
		if err == nil && size >= 0 {
			n, err = strconv.Atoi(fields[size])
		}
		if err == nil && from <= last && from+n-1 >= first {
			return linux.Printable(fields[0])
		}
	}
	return ""
}

// mapped reports whether a user namespace has all numbers from first to last. A map that cannot be read does not say that it has not.
func mapped(path string, first, last int) bool {
	b, err := os.ReadFile(path)
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, n int
		if got, _ := fmt.Sscan(line, &inside, &outside, &n); got == 3 && inside <= first && last < inside+n {
			return true
		}
	}
	return false
}

// examineSerial tells how the guest's serial port is bounded: what a guest writes on it is the one thing that would fill the host by itself.
func (d *Driver) examineSerial() vmm.Finding {
	f := vmm.Finding{Name: "serial port", Detail: fmt.Sprintf("bounded: the last %d KiB are kept in memory, nothing reaches a disk; the guest gets no input", tailSize>>10)}
	if d.cfg.Console {
		f.Detail, f.Fix = "guests take input on it", "leave Console to tests"
	}
	return f
}

func (d *Driver) examineFaults(missing error) vmm.Finding {
	f := vmm.Finding{Name: "userfaultfd", Detail: "there, and not used: the setting pageFaultHandler is off"}
	switch {
	case missing == nil && d.cfg.PageFaults.Handler:
		f.Detail = "there: restored machines get their memory as they touch it"
	case missing != nil && d.cfg.PageFaults.Handler:
		f.Detail = missing.Error() + ": memory is mapped from its file, and snapshots are fetched whole before they run"
		f.Fix = "boot Linux 6.1 or newer, or sysctl -w vm.unprivileged_userfaultfd=1, or switch pageFaultHandler off"
	case missing != nil:
		f.Detail = "not there; optional: only the setting pageFaultHandler, which is off, needs it"
	}
	return f
}
