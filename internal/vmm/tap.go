package vmm

// TAPDriver is a Driver whose machines attach to the TAP device of a network slot. Those of all others take one end of its cable.
type TAPDriver interface {
	NeedsTAP()
}
