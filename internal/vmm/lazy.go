package vmm

// Lazy is a Driver that can restore from a snapshot some of whose files are elsewhere.
type Lazy interface {
	// Elsewhere names the files of a snapshot that need not be in the folder that Restore gets, at this moment; nil when all must be.
	Elsewhere() []string
}
