def solve(number):
    while True:
        print('x' * 1000000)
