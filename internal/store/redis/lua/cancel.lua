local j = current(ARGV[1])
if not j then return {'absent'} end
if j.state ~= 'waiting' and j.state ~= 'leased' then return {'conflict', j.state} end
finish(j, 'cancelled', '', '')
return {'ok'}
