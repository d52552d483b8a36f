package kernel

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// Finding is one configuration option that a guest needs or profits from.
type Finding struct {
	Option   string `json:"option"`
	Required bool   `json:"required"`
	Value    string `json:"value"` // y, m, or n
	OK       bool   `json:"ok"`
	Why      string `json:"why"`
}

// Report says whether a kernel can run our guests.
type Report struct {
	File     string    `json:"file"`
	Version  string    `json:"version"`
	Modules  string    `json:"modules,omitempty"` // the folder, where there is one
	Config   string    `json:"config"`            // where the configuration was found
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
}

// demand is an option with what it is for.
type demand struct {
	option   string
	module   bool // may be a module
	required bool
	why      string
}

// demands are what our initramfs, agent and drivers use, checked against the drivers' own machines.
var demands = []demand{
	{"CONFIG_BLK_DEV_INITRD", false, true, "the first root file system is an initramfs"},
	{"CONFIG_DEVTMPFS", false, true, "/dev"},
	{"CONFIG_PROC_FS", false, true, "/proc"},
	{"CONFIG_SYSFS", false, true, "/sys, where disks are told apart"},
	{"CONFIG_TMPFS", false, true, "/run and /dev/shm, and the writable layer of a guest without a disk"},
	{"CONFIG_UNIX", true, true, "local sockets"},
	{"CONFIG_INET", false, true, "the agent is reached over TCP"},
	{"CONFIG_PACKET", true, true, "a restored guest is told its new address in a frame on its cable"},
	{"CONFIG_CGROUPS", false, true, "control groups"},
	{"CONFIG_CGROUP_PIDS", false, true, "the limit of processes"},
	{"CONFIG_SERIAL_8250_CONSOLE", false, true, "the serial console says whether the guest came up"},
	{"CONFIG_VIRTIO_MMIO", true, true, "all devices of a microVM are behind virtio-mmio"},
	{"CONFIG_VIRTIO_BLK", true, true, "the template and the writable layer are block devices"},
	{"CONFIG_VIRTIO_NET", true, true, "the network device"},
	{"CONFIG_HW_RANDOM_VIRTIO", true, true, "entropy from the host"},
	{"CONFIG_EROFS_FS", true, true, "templates are EROFS images"},
	{"CONFIG_OVERLAY_FS", true, true, "the writable layer lies over the template"},
	{"CONFIG_EXT4_FS", true, true, "the writable layer is an ext4 file system"},
	{"CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES", false, false, "devices are found without ACPI; with CONFIG_ACPI they are found by it"},
	{"CONFIG_PVH", false, false, "QEMU starts the uncompressed image (x86)"},
	{"CONFIG_KVM_GUEST", false, false, "the paravirtual clock: time stays right over pauses (x86)"},
	{"CONFIG_VMGENID", true, false, "the kernel reseeds its generator after a restore by itself"},
	{"CONFIG_VIRTIO_BALLOON", true, false, "memory can be taken back from a running guest"},
	{"CONFIG_VIRTIO_VSOCKETS", true, false, "sockets to the host beside the network"},
	{"CONFIG_SQUASHFS", true, false, "templates of other makers"},
	{"CONFIG_SECCOMP_FILTER", false, false, "browsers and container tools inside the guest"},
	{"CONFIG_USER_NS", false, false, "sandboxes of browsers inside the guest"},
	{"CONFIG_BPF_SYSCALL", false, false, "tracing tools inside the guest"},
	{"CONFIG_FUSE_FS", true, false, "FUSE file systems inside the guest"},
}

// Check reads the configuration of the kernel in a file, which the kernel carries itself (CONFIG_IKCONFIG) or which lies beside it as
// config-VERSION or config, and holds it against what our guests need. A kernel whose configuration cannot be found is
// tartarus.Unsupported.
func Check(file string) (Report, error) {
	k, err := OpenFile(file)
	if err != nil {
		return Report{}, err
	}
	image, err := k.Load()
	if err != nil {
		return Report{}, err
	}
	config, from, err := configuration(file, k.Version, image)
	if err != nil {
		return Report{}, err
	}
	r := Report{File: file, Version: k.Version, Modules: k.Modules, Config: from, OK: true}
	values := parseConfig(config)
	for _, d := range demands {
		f := Finding{Option: d.option, Required: d.required, Value: values[d.option], Why: d.why}
		switch f.Value {
		case "y":
			f.OK = true
		case "m":
			// A module that is not there to load is as good as none.
			f.OK = d.module && k.Modules != ""
		default:
			f.Value = "n"
		}
		r.OK = r.OK && (f.OK || !f.Required)
		r.Findings = append(r.Findings, f)
	}
	return r, nil
}

// configuration finds a kernel's configuration and says where.
func configuration(file, version string, image []byte) (config []byte, from string, err error) {
	if config, err := ikconfig(image); err != nil || config != nil {
		return config, "the kernel itself (CONFIG_IKCONFIG)", err
	}
	for _, name := range []string{"config-" + version, "config"} {
		path := filepath.Join(filepath.Dir(file), name)
		b, err := os.ReadFile(path)
		if err == nil {
			return b, path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, "", fmt.Errorf("read kernel configuration: %w", err)
		}
	}
	return nil, "", tartarus.Errorf(tartarus.Unsupported,
		"%s does not carry its configuration (CONFIG_IKCONFIG), and neither config-%s nor config lies beside it", file, version)
}

const (
	ikconfigStart, ikconfigEnd = "IKCFG_ST", "IKCFG_ED" // kernel/configs.c

	// maxConfig bounds an unpacked configuration; a distribution's is 250 KB.
	maxConfig = 8 << 20
)

// ikconfig takes the configuration out of an image; nil where it has none. The mark alone is no proof of one: what reads kernels has it too.
func ikconfig(image []byte) ([]byte, error) {
	for {
		_, rest, ok := bytes.Cut(image, []byte(ikconfigStart))
		if !ok {
			return nil, nil
		}
		image = rest
		packed, _, ok := bytes.Cut(rest, []byte(ikconfigEnd))
		if !ok {
			return nil, nil
		}
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			continue
		}
		config, err := io.ReadAll(io.LimitReader(z, maxConfig))
		if err != nil {
			return nil, tartarus.Errorf(tartarus.Corrupt, "read the configuration in the kernel: %w", err)
		}
		return config, nil
	}
}

func parseConfig(b []byte) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(name, "CONFIG_") {
			out[name] = value
		}
	}
	return out
}
