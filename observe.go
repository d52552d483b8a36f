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
