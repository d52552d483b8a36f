package olympus

import "github.com/tartarus-sandbox/tartarus/internal/tenant"

// Row is a row of the route table, for tests from outside.
type Row struct {
	Method, Pattern string
	Role            tenant.Role
}

// Routes is the route table.
func Routes() (rows []Row) {
	for _, rt := range routes {
		rows = append(rows, Row{rt.method, rt.pattern, rt.role})
	}
	return rows
}

// Sweep does one round of the janitor.
var Sweep = (*Server).sweep

// Exchange tells other replicas what this one has seen, and learns from them.
var Exchange = (*Server).exchange
