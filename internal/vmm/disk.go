package vmm

import "context"

// DiskDriver is a Driver whose machines' writable disks can be kept without their memory. What a disk snapshot holds is what a crash at
// that instant would have left: names, contents, holes, owners, modes, times to the second, links, extended attributes, and what was deleted of the template.
type DiskDriver interface {
	// BootDisk is Boot with the writable disk that a disk snapshot in dir holds, which is left as it was. A snapshot that is damaged, or
	// whole rather than of the disk alone, is tartarus.Corrupt or tartarus.Unsupported, and nothing runs.
	BootDisk(ctx context.Context, c Config, dir string) (Machine, error)

	// ExtractDisk makes a disk snapshot in disk, which exists and is empty, of the whole snapshot in dir. c is what Restore would get;
	// its id is taken meanwhile. Nothing of a machine is left afterwards.
	ExtractDisk(ctx context.Context, c Config, dir, disk string) error
}

// DiskMachine is a Machine of a DiskDriver.
type DiskMachine interface {
	// SnapshotDisk writes the writable disk alone, frozen at one instant, into dir, which exists and is empty. Afterwards the guest is in the
	// state it was in before. One that fails leaves the guest as it was and dir without a usable snapshot.
	SnapshotDisk(ctx context.Context, dir string) error
}
