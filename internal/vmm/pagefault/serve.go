package pagefault

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Unit is how much is brought in at once: large enough that a restore takes thousands of faults less, small enough that a
// guest waits for 20 µs of copying at most.
const Unit = 64 << 10

// Events and calls of <linux/userfaultfd.h>.
const (
	eventPagefault = 0x12
	eventRemove    = 0x15
	messageSize    = 32

	ioctlCopy = 0xc028aa03
	ioctlZero = 0xc020aa04
	ioctlWake = 0x8010aa02
)

// hands is how many faults are served at the same time, and how many units are prefetched: a source over the network takes its time.
const hands = 8

// mapping is a piece of guest memory in the monitor, as it describes it.
type mapping struct {
	Base     uint64 `json:"base_host_virt_addr"`
	Size     uint64 `json:"size"`
	Offset   uint64 `json:"offset"`    // in the memory file
	PageSize uint64 `json:"page_size"` // bytes; absent before 1.10
}

// region is a mapping with what is there of it.
type region struct {
	mapping
	unit  uint64 // bytes
	first int    // number of its first unit, over all regions
	units []unit
}

// unit is a piece of memory that is brought in whole, once.
type unit struct {
	mu      sync.Mutex
	here    bool
	removed bool // the guest gave pages of it back: what is missing now is zeros
}

// server serves the faults of one monitor.
type server struct {
	uffd    int
	src     Source
	regions []*region
	set     *workingSet
}

// serve receives the monitor's userfaultfd and serves it until the monitor is gone.
func serve(conn *net.UnixConn, src Source, size int64, working *os.File) error {
	maps, uffd, err := receive(conn)
	if err != nil {
		return fmt.Errorf("receive memory of monitor: %w", err)
	}
	s := &server{uffd: uffd, src: src, set: openWorkingSet(working)}
	if err := s.layOut(maps, size); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = conn.Read(make([]byte, 1)) // the monitor says nothing more; this ends with it
	}()
	// A fault that cannot be served ends the process at once: its processor waits for it, and may be the only one that would cause another event.
	failed := make(chan error, hands+1)
	go func() { failed <- s.faults(failed) }()
	go func() {
		s.prefetch(gone)
		s.fill(gone)
	}()
	settled := time.After(settle)
	for {
		select {
		case <-gone:
			s.set.save()
			return nil
		case err := <-failed:
			s.set.save() // most likely its monitor has ended, and the descriptor said so first
			return err
		case <-settled:
			s.set.save()
		}
	}
}

// receive takes the description of the memory, with the descriptor beside it.
func receive(conn *net.UnixConn) ([]mapping, int, error) {
	if err := conn.SetReadDeadline(time.Now().Add(acceptTimeout)); err != nil {
		return nil, -1, err
	}
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	n, oobn, flags, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, -1, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return nil, -1, errors.Join(err, fmt.Errorf("%d control messages, flags %x", len(messages), flags))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, -1, errors.Join(err, fmt.Errorf("%d descriptors", len(fds)))
	}
	var maps []mapping
	if err := json.Unmarshal(buf[:n], &maps); err != nil {
		return nil, -1, err
	}
	return maps, fds[0], nil
}

// layOut checks what the monitor says of its memory: it is not trusted, and could do no more harm than to itself.
func (s *server) layOut(maps []mapping, size int64) error {
	const most = 64
	first := 0
	for _, m := range maps {
		if m.PageSize == 0 {
			m.PageSize = 4096
		}
		r := &region{mapping: m, unit: max(Unit, m.PageSize), first: first}
		if m.Size == 0 || m.PageSize&(m.PageSize-1) != 0 || m.Base%m.PageSize != 0 || m.Offset > uint64(size) || m.Size > uint64(size)-m.Offset ||
			m.Base+m.Size < m.Base || len(maps) > most {
			return fmt.Errorf("the monitor describes impossible memory: %+v of %d bytes", m, size)
		}
		r.units = make([]unit, (m.Size+r.unit-1)/r.unit)
		first += len(r.units)
		s.regions = append(s.regions, r)
	}
	return nil
}

// faults reads events until the monitor is gone. Each fault has a hand of its own, so that one slow read holds up one processor only; what one cannot serve
// it tells failed.
func (s *server) faults(failed chan<- error) error {
	buf := make([]byte, 16*messageSize)
	slots := make(chan struct{}, hands)
	for {
		fds := []unix.PollFd{{Fd: int32(s.uffd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		n, err := unix.Read(s.uffd, buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("read page faults: %w", errors.Join(err, os.ErrClosed))
		}
		for m := buf[:n]; len(m) >= messageSize; m = m[messageSize:] {
			a, b := binary.NativeEndian.Uint64(m[8:]), binary.NativeEndian.Uint64(m[16:])
			switch m[0] {
			case eventRemove: // start, end
				s.remove(a, b)
			case eventPagefault: // flags, address
				slots <- struct{}{}
				go func() {
					defer func() { <-slots }()
					if err := s.fault(b); err != nil {
						select {
						case failed <- err:
						default:
						}
					}
				}()
			}
		}
	}
}

// find tells in which region and unit an address is.
func (s *server) find(address uint64) (*region, int, error) {
	for _, r := range s.regions {
		if address >= r.Base && address-r.Base < r.Size {
			return r, int((address - r.Base) / r.unit), nil
		}
	}
	return nil, 0, fmt.Errorf("a fault at %x, which is no guest memory", address)
}

// fault brings in what is missing at address.
func (s *server) fault(address uint64) error {
	r, i, err := s.find(address)
	if err != nil {
		return err
	}
	u := &r.units[i]
	u.mu.Lock()
	here, removed := u.here, u.removed
	u.mu.Unlock()
	page := address &^ (r.PageSize - 1)
	if here && removed {
		return s.zero(page, r.PageSize)
	}
	s.set.note(r.first + i)
	if err := s.bring(r, i); err != nil {
		return err
	}
	return s.wake(page, r.PageSize) // it may have been there already
}

// bring copies a unit into the monitor, unless it was before.
func (s *server) bring(r *region, i int) error {
	u := &r.units[i]
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.here {
		return nil
	}
	at := uint64(i) * r.unit
	buf := make([]byte, min(r.unit, r.Size-at))
	if n, err := s.src.ReadAt(buf, int64(r.Offset+at)); n < len(buf) {
		return fmt.Errorf("read memory at %d: %w", r.Offset+at, err)
	}
	u.here = true
	return s.copyIn(r.Base+at, buf, r.PageSize)
}

// remove notes that the guest gave pages back. They are zeros when it takes them again, but for those of a unit that is brought in
// only later: what a page holds that was given back is undefined for a guest, and this is its own memory.
func (s *server) remove(start, end uint64) {
	for a := start; a < end; {
		r, i, err := s.find(a)
		if err != nil {
			return
		}
		u := &r.units[i]
		u.mu.Lock()
		u.removed = true
		if !u.here && a == r.Base+uint64(i)*r.unit && end-a >= r.unit {
			u.here = true // all of it is gone
		}
		u.mu.Unlock()
		a = r.Base + uint64(i+1)*r.unit
	}
}

// copyIn copies b to address in the monitor. Pages that are there already stay.
func (s *server) copyIn(address uint64, b []byte, page uint64) error {
	for len(b) > 0 {
		arg := struct {
			dst, src, length, mode uint64
			done                   int64
		}{dst: address, src: uint64(uintptr(unsafe.Pointer(&b[0]))), length: uint64(len(b))}
		errno := s.ioctl(ioctlCopy, unsafe.Pointer(&arg))
		runtime.KeepAlive(b)
		step := uint64(max(arg.done, 0))
		switch errno {
		case 0:
			return nil
		case unix.EEXIST:
			step = page
		case unix.EAGAIN:
			runtime.Gosched() // memory is being given back: the event comes first
		case unix.ESRCH, unix.ENOENT:
			return nil // the monitor is on its way out
		default:
			return fmt.Errorf("bring in memory: %w", errno)
		}
		address, b = address+step, b[min(step, uint64(len(b))):]
	}
	return nil
}

func (s *server) zero(page, size uint64) error {
	for {
		arg := struct {
			start, length, mode uint64
			done                int64
		}{start: page, length: size}
		switch errno := s.ioctl(ioctlZero, unsafe.Pointer(&arg)); errno {
		case 0, unix.ESRCH, unix.ENOENT:
			return nil
		case unix.EEXIST:
			return s.wake(page, size)
		case unix.EAGAIN:
			runtime.Gosched()
		default:
			return fmt.Errorf("bring in zeros: %w", errno)
		}
	}
}

func (s *server) wake(page, size uint64) error {
	arg := struct{ start, length uint64 }{page, size}
	if errno := s.ioctl(ioctlWake, unsafe.Pointer(&arg)); errno != 0 && errno != unix.ESRCH && errno != unix.ENOENT {
		return fmt.Errorf("wake processor: %w", errno)
	}
	return nil
}

func (s *server) ioctl(request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.uffd), request, uintptr(arg))
	return errno
}

// prefetch brings in what guests of this snapshot touched before, in their order.
func (s *server) prefetch(gone <-chan struct{}) {
	next := make(chan int)
	for range hands {
		go func() {
			for n := range next {
				i, ok := slices.BinarySearchFunc(s.regions, n, func(r *region, n int) int { return r.first - n })
				if !ok {
					i--
				}
				if i < 0 || n-s.regions[i].first >= len(s.regions[i].units) {
					continue // of another snapshot; a working set is a hint
				}
				_ = s.bring(s.regions[i], n-s.regions[i].first) // a fault on it tries again, and says why not
			}
		}()
	}
	defer close(next)
	for _, n := range s.set.before {
		select {
		case next <- n:
		case <-gone:
			return
		}
	}
}

// fillAgain is how long a source that did not give a unit is left alone.
const fillAgain = 5 * time.Second

// fill brings in the rest of a memory that is somewhere else, one unit after the other: who waits for one has it sooner.
func (s *server) fill(gone <-chan struct{}) {
	holes, ok := s.src.(Holes)
	if !ok {
		return
	}
	for _, r := range s.regions {
		for i := 0; i < len(r.units); {
			at := uint64(i) * r.unit
			var err error
			if !holes.Hole(int64(r.Offset+at), int64(min(r.unit, r.Size-at))) {
				err = s.bring(r, i)
			}
			if err == nil {
				i++
				select {
				case <-gone:
					return
				default:
					continue
				}
			}
			select {
			case <-gone:
				return
			case <-time.After(fillAgain):
			}
		}
	}
}
