package qemu

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/linux"
)

const (
	// emulated is the processor that QEMU plays: x86-64-v2. Newer ones take a third more time to boot, for instructions that are slow here.
	emulated = "Westmere,spec-ctrl=off"

	consoleID   = "console"
	consoleSize = 64 << 10 // what is kept of what the guest writes to its serial port
	stateName   = "state"

	// layout changes when anything of a machine does that a snapshot depends on: devices, their order, their properties.
	layout = "1"
)

// given are the numbers, in QEMU, of the files that it gets. Zero is none.
type given struct {
	socket, kernel, first, memory, image, disk, tap, state int
	diskBytes, diskOps                                     int64 // that may pass per second; 0 is any number
}

// arguments is QEMU's command line. Everything is named, nothing left to what a QEMU of another version would choose.
func arguments(id string, c vmm.Config, qemu emulator, g given, private bool) ([]string, error) {
	line, err := commandLine(c, qemu)
	if err != nil {
		return nil, err
	}
	share := "on"
	if private {
		share = "off"
	}
	args := []string{
		"-name", id,
		"-no-user-config", "-nodefaults", "-display", "none",
		"-machine", "microvm,acpi=on,pit=on,pic=on,rtc=on,ioapic2=off,pcie=off,usb=off,isa-serial=on,x-option-roms=on,dump-guest-core=off,mem-merge=off,memory-backend=ram",
		"-global", "virtio-mmio.force-legacy=off",
		"-smp", strconv.Itoa(cpus(c.Resources)),
		"-m", strconv.FormatInt(memoryMB(c.Resources), 10) + "M",
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=%s,prealloc=off,dump=off,merge=off", memoryMB(c.Resources), self(g.memory), share),
		"-rtc", "base=utc,clock=vm",
		"-kernel", self(g.kernel), "-initrd", self(g.first), "-append", line,
		"-add-fd", fmt.Sprintf("fd=%d,set=1", g.image),
		"-blockdev", "driver=file,node-name=image-file,filename=/dev/fdset/1,read-only=on,locking=off,aio=threads",
		"-blockdev", "driver=raw,node-name=image,file=image-file,read-only=on",
		"-device", "virtio-blk-device,drive=image,bus=virtio-mmio-bus.0",
		"-object", "rng-builtin,id=random",
		"-device", "virtio-rng-device,rng=random,max-bytes=65536,period=1000,bus=virtio-mmio-bus.2",
		"-chardev", fmt.Sprintf("ringbuf,id=%s,size=%d", consoleID, consoleSize), "-serial", "chardev:" + consoleID,
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d,server=on,wait=off", g.socket), "-mon", "chardev=monitor,mode=control",
		// A guest that restarts has ended; its last words can be read until the driver ends the process.
		"-action", "reboot=shutdown,shutdown=pause",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
	if qemu.hardware {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		// Translated code beyond 64 MiB is thrown away: it counts as QEMU's own memory.
		args = append(args, "-accel", "tcg,thread=multi,tb-size=64", "-cpu", emulated)
	}
	if g.disk > 0 {
		args = append(args,
			"-add-fd", fmt.Sprintf("fd=%d,set=2", g.disk),
			"-blockdev", "driver=file,node-name=disk-file,filename=/dev/fdset/2,locking=off,aio=threads,discard=unmap",
			"-blockdev", "driver=raw,node-name=disk,file=disk-file,discard=unmap,detect-zeroes=unmap")
		drive := "disk"
		if g.diskBytes > 0 || g.diskOps > 0 { // a layer above: nothing that a snapshot depends on is another
			drive = "rated"
			args = append(args, "-object", fmt.Sprintf("throttle-group,id=rate,x-bps-total=%d,x-iops-total=%d", g.diskBytes, g.diskOps),
				"-blockdev", "driver=throttle,node-name=rated,throttle-group=rate,file=disk,discard=unmap")
		}
		args = append(args, "-device", "virtio-blk-device,drive="+drive+",bus=virtio-mmio-bus.1")
	}
	if c.Interface != nil {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net,fd=%d,vhost=off", g.tap),
			"-device", fmt.Sprintf("virtio-net-device,netdev=net,mac=%s,bus=virtio-mmio-bus.3", c.Interface.MAC))
	}
	if g.state > 0 {
		args = append(args, "-incoming", "defer")
	}
	return args, nil
}

// self is how QEMU opens a file that it has.
func self(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// commandLine is the kernel's.
func commandLine(c vmm.Config, qemu emulator) (string, error) {
	words := []string{"reboot=t"} // by the one way that a machine without any controller has
	if !qemu.hardware {
		// The clock cannot be calibrated against an emulated timer on a busy host: one boot in three hung there. And a processor that is
		// emulated has none of the faults that the kernel would work around.
		khz, err := clockRate()
		if err != nil {
			return "", err
		}
		const ticks = 250 // CONFIG_HZ of distribution kernels; it only sets how long the shortest delays are
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", khz), fmt.Sprintf("lpj=%d", khz*1000/ticks), "no_timer_check", "tsc=reliable", "mitigations=off")
	}
	return linux.CommandLine(c, words...)
}

// clockRate is the rate of the processor's time stamp counter in kHz.
var clockRate = sync.OnceValues(func() (int, error) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0, fmt.Errorf("find clock rate: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "cpu MHz" {
			continue
		}
		mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err == nil && mhz > 100 {
			return int(mhz * 1000), nil
		}
	}
	return 0, tartarus.Errorf(tartarus.Unsupported, "find clock rate: /proc/cpuinfo does not tell it")
})

// cpus is how many processors the guest has.
func cpus(r tartarus.Resources) int {
	if r.VCPU <= 0 {
		return runtime.NumCPU()
	}
	return min(r.VCPU, runtime.NumCPU())
}

// defaultMemoryMB is the memory of a guest without a limit: a virtual machine has to have some amount.
const defaultMemoryMB = 1024

func memoryMB(r tartarus.Resources) int64 {
	if r.MemoryMB <= 0 {
		return defaultMemoryMB
	}
	return r.MemoryMB
}

// overheadMB is what QEMU itself may take beside the guest's memory: by emulation there are 64 MiB of translated code, and copies of page tables.
// Measured at the most, with two processors: 46 MiB by KVM, 150 by emulation.
func overheadMB(qemu emulator) int64 {
	if qemu.hardware {
		return 128
	}
	return 320
}
