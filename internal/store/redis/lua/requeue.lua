local j = current(ARGV[1])
if not j then return {'absent'} end
if j.state ~= 'dead' then return {'conflict', j.state} end
local deadline = j.deadline
if deadline > 0 and deadline <= now then deadline = 0 end
call('HSET', job_key(j.id), 'state', 'waiting', 'attempt', 0, 'why', '', 'ended', 0, 'deadline', num(deadline))
call('ZREM', P .. 'state:dead', j.id)
call('ZADD', P .. 'open', j.seq, j.id)
line_up(j.id, j.node, j.tenant, j.seq)
schedule(j.id, deadline)
return {'ok'}
