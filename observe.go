package tartarus

import "time"

// LogQuery selects entries of a sandbox's log.
type LogQuery struct {
	Cursor     time.Time // entries at or after it, or at or before it with Descending; zero is the start, or the end
	Limit      int       // 1..1000
	Descending bool
	Level      string // least severe level wanted: debug, info, warn, error; empty means all
	Search     string // text that the message contains
}

// LogEntry is one line of a sandbox's log.
type LogEntry struct {
	Time    time.Time         `json:"timestamp"`
	Level   string            `json:"level"`
	Message string            `json:"message"`
	Fields  map[string]string `json:"fields,omitempty"`
}

// Sample is one measurement of a sandbox. Sizes are bytes.
type Sample struct {
	Time       time.Time `json:"time"`
	CPUCount   int       `json:"cpuCount"`
	CPUPercent float64   `json:"cpuPercent"` // of all its CPUs together: 100 is one CPU fully used
	MemUsed    int64     `json:"memUsed"`
	MemTotal   int64     `json:"memTotal"`
	MemCache   int64     `json:"memCache"`
	DiskUsed   int64     `json:"diskUsed"`
	DiskTotal  int64     `json:"diskTotal"`
}

// DeviceCounts is what the devices of virtual machines did in some time.
type DeviceCounts struct {
	DiskRead, DiskWritten int64 // bytes
	NetReceived, NetSent  int64 // bytes, as the guest sees it
	SerialWritten         int64 // bytes that the guest wrote on its serial port
	DiskThrottled         int64 // times that a rate held up the disk
	NetThrottled          int64 // times that a rate held up the network
	Forbidden             int64 // system calls that a monitor made and may not make
}

// Add adds what was done in another time.
func (c *DeviceCounts) Add(o DeviceCounts) {
	c.DiskRead += o.DiskRead
	c.DiskWritten += o.DiskWritten
	c.NetReceived += o.NetReceived
	c.NetSent += o.NetSent
	c.SerialWritten += o.SerialWritten
	c.DiskThrottled += o.DiskThrottled
	c.NetThrottled += o.NetThrottled
	c.Forbidden += o.Forbidden
}

// GuestMemory is what a guest in a virtual machine says of its memory, in bytes.
type GuestMemory struct {
	Total     int64 // that the guest's kernel can use
	Free      int64 // that nothing is in
	Available int64 // that new processes could have, caches given up
	Cached    int64 // files that can be read again
	Returned  int64 // given back to the host by the balloon
}

// Add adds the memory of another guest.
func (g *GuestMemory) Add(o GuestMemory) {
	g.Total += o.Total
	g.Free += o.Free
	g.Available += o.Available
	g.Cached += o.Cached
	g.Returned += o.Returned
}
